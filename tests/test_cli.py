"""Every command: its output, its JSON, its exit code, and that a user's fault never shows a traceback."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import einfuse
from einfuse.cli import main
from einfuse.ir.passes.pipeline import PASSES
from einfuse.runtime.names import NAMES

GOOD = """
attention mine(window: int = 4) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where j <= i and i - j < window
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""
BAD = GOOD.replace("softmax[j]", "softmix[j]")


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.attn"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.attn"
    path.write_text(BAD)
    return str(path)


def reported(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    """What a command with --json prints, after its exit code was looked at."""
    assert main([*argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


# -- texts ---------------------------------------------------------------------------------------------------------------------------


def test_check_accepts_a_good_file(capsys: pytest.CaptureFixture[str], good: str) -> None:
    assert reported(capsys, "check", good) == {"ok": True, "errors": []}


def test_check_notes_a_condition_that_leaves_out_more_than_it_seems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is right, and means that what reads `g` has no first two keys either; about the rank that is summed it restricts the sum."""
    text = """attention mine over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, j, d]; in v[b, h, j, e]
  g[j] = sum[d](k where CONDITION)
  s = sum[d](q * k) + g where j <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""
    path, x = tmp_path / "mine.attn", torch.randn(1, 1, 4, 4)
    outs = []
    for condition, noted in (("j > 1", True), ("d < 2", False), ("k > 0 and j > 1", False)):
        path.write_text(text.replace("CONDITION", condition))
        found = reported(capsys, "check", str(path))
        assert found["ok"]
        assert [(h["line"], h["column"]) for h in found.get("hints", [])] == ([(4, 25)] if noted else [])
        outs.append(einfuse.compile(path.read_text(), backend="torch").reference(x, x, x))
    plain = text.replace("g[j] = sum[d](k where CONDITION)", "g[j] = sum[d](k)").replace("j <= i", "1 < j and j <= i")
    torch.testing.assert_close(outs[0], einfuse.compile(plain, backend="torch").reference(x, x, x))
    assert main(["check", str(path)]) == 0
    path.write_text(text.replace("CONDITION", "j > 1"))
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr()
    assert "note" in said.err
    assert "the condition says nothing about `d`: where it fails, `sum` does not exist" in said.err
    assert said.out.endswith("1 file good\n")


def test_check_names_place_message_and_hint(capsys: pytest.CaptureFixture[str], bad: str) -> None:
    found = reported(capsys, "check", bad, code=1)
    (error,) = found["errors"]
    assert found["ok"] is False
    assert set(error) == {"line", "column", "message", "hint"}
    assert (error["line"], error["column"]) == (8, 20)
    assert "softmix" in error["message"]
    assert "softmax" in error["hint"]


def test_check_reports_the_fault_of_every_file(capsys: pytest.CaptureFixture[str], good: str, bad: str) -> None:
    found = reported(capsys, "check", good, bad, "no-such-file.attn", code=1)
    assert [e["message"].split(":")[0] for e in found["errors"]] == [bad, "no-such-file.attn"]


def test_check_shows_the_line_with_a_caret(capsys: pytest.CaptureFixture[str], bad: str) -> None:
    assert main(["check", bad]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"error {bad}:8:20: ")
    assert lines[1].strip() == "o[i, e] = sum[j](softmix[j](s) * v)"
    assert lines[2].index("^") == lines[1].index("softmix")


def test_check_of_bytes_that_are_no_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "noise.attn"
    path.write_bytes(b"\xff\xfe\x00attention")
    assert "UTF-8" in reported(capsys, "check", str(path), code=1)["errors"][0]["message"]


EMPTY = {
    "nothing": "",
    "a comment": "# nothing yet\n",
    "a docstring": '"""To be written."""\n',
    "definitions": "use masks\ndef near[i, j](w) = abs(i - j) < w\n",
}
OVER_SPECS = (
    "check",
    "emit --backend torch",
    "ir",
    "opt",
    "passes",
    "explain",
    "tiles --shape 1,1,64,64",
    "verify",
    "bench",
    "demo",
)


@pytest.mark.parametrize("text", EMPTY.values(), ids=EMPTY.keys())
def test_every_command_says_that_a_file_defines_no_attention(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    (path := tmp_path / "empty.attn").write_text(text)
    for command in OVER_SPECS:
        assert main([*command.split(), str(path)]) == 1
        assert capsys.readouterr().err.startswith(f"error {path}:1:1: this file defines no attention\n"), command
    (error,) = reported(capsys, "check", str(path), code=1)["errors"]
    assert error["hint"].startswith("its definitions are checked" if "def" in text else "write attention")


def test_check_looks_at_every_attention_and_every_optional_input(
    capsys: pytest.CaptureFixture[str], good: str, bad: str, tmp_path: Path
) -> None:
    (path := tmp_path / "two.attn").write_text(BAD.replace("mine", "first") + GOOD)
    (error,) = reported(capsys, "check", str(path), "-p", "window=9", code=1)["errors"]
    assert (error["line"], "softmix" in error["message"]) == (8, True)
    path.write_text(
        GOOD.replace("in v", "in bias[h] optional\n  in v").replace("where", "+ (slop if given(bias) else 0) where")
    )
    (error,) = reported(capsys, "check", str(path), code=1)["errors"]
    assert "slop" in error["message"]


def test_fmt_rewrites_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "loose.attn"
    path.write_text(GOOD.replace("  in q", "        in    q"))
    assert main(["fmt", "--check", str(path)]) == 1
    assert "        in    q" in path.read_text()
    assert main(["fmt", str(path)]) == 0
    assert "        in    q" not in path.read_text()
    assert main(["fmt", "--check", str(path)]) == 0
    assert "would rewrite" in capsys.readouterr().err


def test_list_finds_by_name_family_paper_and_formula(capsys: pytest.CaptureFixture[str]) -> None:
    everything = reported(capsys, "list")["specs"]
    assert all(set(s) == {"name", "family", "path", "paper"} for s in everything)
    assert {"full", "causal", "alibi", "sigmoid", "softmax1"} <= {s["name"] for s in everything}
    assert [s["name"] for s in reported(capsys, "list", "PRESS ET AL")["specs"]] == ["alibi", "alibi_window"]
    assert [s["name"] for s in reported(capsys, "list", "Diffused keys")["specs"]] == []
    assert "talking_heads" in {s["name"] for s in reported(capsys, "list", "sum[g]( post * softmax[j](mixed) )")["specs"]}
    assert [s["name"] for s in reported(capsys, "list", "exp(w x - |x|^2 / 2)")["specs"]] == ["performer", "performer_both"]
    assert reported(capsys, "list", "no such thing") == {"specs": []}


# -- inside --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PASSES)
def test_ir_after_every_pass(capsys: pytest.CaptureFixture[str], good: str, name: str) -> None:
    assert main(["ir", good, "--after", name]) == 0
    assert capsys.readouterr().out.startswith("cascade mine over b, h {")


@pytest.mark.parametrize(("name", "kernels"), [("combiner", 2), ("interface", 3), ("kmax", 2), ("moba", 3)])
def test_ir_of_several_kernels_is_that_of_each(capsys: pytest.CaptureFixture[str], name: str, kernels: int) -> None:
    assert main(["ir", name, "--after", "online_fuse"]) == 0
    shown = capsys.readouterr().out
    assert sum(line.startswith("cascade") for line in shown.splitlines()) == kernels
    assert shown.strip() == einfuse.compile(name).ir("online_fuse").strip()


def test_opt_reads_what_it_prints(capsys: pytest.CaptureFixture[str], good: str, tmp_path: Path) -> None:
    assert main(["ir", good, "--after", "online_fuse"]) == 0
    (text := tmp_path / "fused.txt").write_text(capsys.readouterr().out)
    assert main(["opt", str(text), "--passes", "name_scores,schedule,mask_ranges", "--print-after-all", "--time-passes"]) == 0
    by_file = capsys.readouterr()
    assert [line for line in by_file.err.splitlines() if line.startswith("# mine after")] == [
        f"# mine after {name}" for name in ("name_scores", "schedule", "mask_ranges")
    ]
    assert re.search(r"^# schedule: \d+\.\d ms$", by_file.err, re.MULTILINE)
    assert main(["opt", good]) == 0
    assert capsys.readouterr().out == by_file.out


def test_opt_reads_stdin_and_prints_every_kernel(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, good: str
) -> None:
    assert main(["opt", good, "--passes", "canonicalise"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(capsys.readouterr().out))
    assert main(["opt", "-", "--passes", "differentiate{wanted=q,k}"]) == 0
    assert re.findall(r"^cascade (\w+)", capsys.readouterr().out, re.MULTILINE) == [
        "mine_prepass",
        "mine_rows",
        "mine_columns_j",
    ]


def test_opt_says_what_is_wrong(capsys: pytest.CaptureFixture[str], good: str, tmp_path: Path) -> None:
    assert main(["opt", good, "--passes", "schedule"]) == 1
    assert "run online_fuse first" in capsys.readouterr().err
    (bad := tmp_path / "bad.txt").write_text("cascade c { o[i] = x[i] out o }")
    assert main(["opt", str(bad)]) == 1
    assert "o uses a rank that is not declared (V1)" in capsys.readouterr().err


def test_passes(capsys: pytest.CaptureFixture[str], good: str) -> None:
    found = reported(capsys, "passes", good)
    assert set(found) == {"name", "rank", "before", "after", "reads", "carries", "linear"}
    assert found["linear"] == "no linear form: s_max is a max over j of what depends on i and j, and no sum"
    assert (found["name"], found["rank"], found["before"], found["after"], found["reads"]) == ("mine", "j", 3, 1, [])
    assert {"m"} == {c["statistic"] for c in found["carries"] if c["how"] == "carry"}
    assert main(["passes", good]) == 0
    assert "mine over j: 3 passes -> 1" in capsys.readouterr().out


def test_the_linear_form_is_shown(capsys: pytest.CaptureFixture[str], good: str) -> None:
    assert main(["passes", "taylor_shift"]) == 0
    found = " ".join(capsys.readouterr().out.split())
    assert "linear form: the weights have rank D * (D // 2 + 1) + D + 1 across i | j (exact), sums over j" in found
    assert main(["ir", "taylor_shift", "--form", "linear", "--size", "D=8"]) == 0
    assert "rank r: key = 49" in capsys.readouterr().out
    assert main(["ir", good, "--form", "linear"]) == 1
    assert "mine has no linear form: s_max is a max over j" in capsys.readouterr().err


MARKS = {
    "cpu": "#include",
    "triton": "@triton.jit",
    "torch": "import torch",
    "loops": "kernel mine",
    "pallas": "pl.pallas_call(",
}


@pytest.mark.parametrize("backend", NAMES)
def test_emit(capsys: pytest.CaptureFixture[str], good: str, backend: str) -> None:
    assert main(["emit", good, "--backend", backend]) == 0
    forward = capsys.readouterr().out
    assert main(["emit", good, "--backend", backend, "--backward", "--dtype", "bfloat16", "--size", "D=32"]) == 0
    assert MARKS[backend] in forward
    assert len(capsys.readouterr().out) > len(forward)


def test_a_parameter_reaches_the_spec(capsys: pytest.CaptureFixture[str], good: str) -> None:
    assert main(["ir", good, "-p", "window=9"]) == 0
    assert "param window: int = 9" in capsys.readouterr().out


# -- running -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verify(capsys: pytest.CaptureFixture[str], good: str) -> None:
    found = reported(capsys, "verify", good, "--backend", "triton", "--dtype", "float32", "--seed", "3")
    assert found["ok"] is True
    assert {r["what"] for r in found["rows"]} == {"out 0", "d q", "d k", "d v"}
    assert set(found["rows"][0]) == {"name", "backend", "dtype", "what", "error", "allowed", "ok"}
    assert all(0 <= r["error"] <= r["allowed"] for r in found["rows"])


def test_verify_says_where_there_was_nothing_to_compare_with(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    body = "in q[i, d]; in v[j, d]; o[i] = sum[j](sum[d](q * v) * log(-1 - abs(v[j, 0]))); out o"
    (spec := tmp_path / "never.attn").write_text(f"attention never {{ rank i: query; rank j: key; rank d: feature; {body} }}")
    assert main(["verify", str(spec), "--backend", "torch", "--dtype", "float32", "--forward-only"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "2 comparisons, 2 wrong" in out, "both forms"
    assert "nan: the oracle has no number there" in out


def test_verify_fails_with_one_when_a_kernel_is_wrong(
    capsys: pytest.CaptureFixture[str], good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import einfuse
    from einfuse.runtime.verify import Certificate, Row

    wrong = Row("mine", "cpu", "float32", "out 0", float("inf"), 1e-6, False)
    monkeypatch.setattr(einfuse, "verify", lambda *args, **kwargs: Certificate((wrong,)))
    found = reported(capsys, "verify", good, code=1)
    assert found["rows"][0]["error"] is None  # JSON has no infinity
    assert main(["verify", good]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_verify_goes_on_where_a_spec_is_refused(
    capsys: pytest.CaptureFixture[str], good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import einfuse
    from einfuse.runtime.verify import Certificate, Row

    def verify(attention: einfuse.Attention, **options: Any) -> Certificate:
        if attention.name == "causal":
            raise einfuse.EinfuseError("rows are kept")
        return Certificate(tuple(Row(attention.name, "cpu", "float32", what, 0.0, 1e-6, True) for what in ("o", "d q", "d k")))

    monkeypatch.setattr(einfuse, "verify", verify)
    assert main(["verify", good, "causal", "bias"]) == 1
    shown = capsys.readouterr().out
    assert (
        "6 comparisons, all good\nright: the values of 2 specs, the gradients of 2\ncausal is refused: rows are kept\n" in shown
    )
    assert reported(capsys, "verify", good, "causal", code=1)["refused"] == {"causal": "rows are kept"}
    assert main(["verify", "causal"]) == 1
    assert capsys.readouterr().err == "einfuse verify: rows are kept\n"


@pytest.mark.parametrize(
    ("asked", "targets"),
    [(("--cross",), {"sm_80", "sm_90", "gfx942"}), (("--target", "sm_120"), {"sm_120"})],
    ids=["--cross", "--target"],
)
def test_verify_compiles_for_the_targets_that_are_asked_for(
    capsys: pytest.CaptureFixture[str], good: str, monkeypatch: pytest.MonkeyPatch, asked: tuple[str, ...], targets: set[str]
) -> None:
    """What compilers make of kernels, tests/codegen/triton and tests/runtime/test_cross_call.py ask them."""
    from einfuse.runtime.cross import CompiledKernel

    def compiled(attention: Any, targets: tuple[str, ...], *rest: Any) -> list[CompiledKernel]:
        return [CompiledKernel("mine", t, "float32", (64, 64), 80, 0, 9000, "mma", True) for t in targets]

    monkeypatch.setattr(einfuse, "cross_compile", compiled)
    argv = ("verify", good, *asked, "--forward-only", "--backend", "torch", "--dtype", "float32")
    found = reported(capsys, *argv)
    assert {r["backend"] for r in found["rows"]} == {"torch", *(f"triton {t}" for t in targets)}
    crossed = [r for r in found["rows"] if r["backend"] != "torch"]
    assert all(r["ok"] and r["error"] == 0 and "mma" in r["what"] for r in crossed)


@pytest.mark.slow
def test_bench(capsys: pytest.CaptureFixture[str], good: str) -> None:
    argv = ("bench", good, "--length", "64", "--heads", "2", "--width", "16", "--repeats", "2")
    (row,) = reported(capsys, *argv)["rows"]
    assert set(row) == {"variant", "dtype", "shape", "peer", "ratio", "spread", "live", "per_tile"}
    assert (row["variant"], row["dtype"], row["shape"]) == ("mine", "float32", "B1 H2 S64 D16")
    assert row["ratio"] > 0


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    checks = {c["what"]: c for c in found["checks"]}
    assert {"python", "torch", "triton", "C++ compiler", "processor", "GPU", "cache"} == set(checks)
    assert found["ok"] == all(c["ok"] for c in checks.values())
    assert all(c["advice"] for c in checks.values() if not c["ok"])


def test_doctor_says_what_to_do_about_a_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EINFUSE_CACHE", str(tmp_path))
    tmp_path.chmod(0o777)
    found = reported(capsys, "doctor", code=1)
    (kept,) = [c for c in found["checks"] if c["what"] == "cache"]
    assert not kept["ok"]
    assert "others may write to it" in kept["advice"]


@pytest.mark.parametrize(("script", "advice"), [("sleep 60", "does not run"), ("exit 3", "ends with 3")])
def test_doctor_does_not_wait_for_a_compiler(
    script: str, advice: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from einfuse._cli import doctor

    (tmp_path / "cxx").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "cxx").chmod(0o755)
    monkeypatch.setattr(doctor, "compiler", lambda: str(tmp_path / "cxx"))
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    found = reported(capsys, "doctor", code=1)
    (seen,) = [c for c in found["checks"] if c["what"] == "C++ compiler"]
    assert advice in seen["advice"]


def test_doctor_says_what_to_do_without_a_compiler(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from einfuse._cli import doctor

    monkeypatch.setattr(doctor, "compiler", lambda: None)
    assert main(["doctor"]) == 1
    assert "install g++ or clang++" in capsys.readouterr().out


# -- the cache -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two entries of a cache, and a file beside that is not ours."""
    from einfuse import _files as files

    monkeypatch.setenv("EINFUSE_CACHE", str(tmp_path))
    files.keep(tmp_path / "v1" / "plan" / "a.json", b"1")
    files.keep(tmp_path / "v1" / "cpu" / "b.so", b"2" * 1000)
    (tmp_path / "letter.txt").write_text("mine")
    return tmp_path


def test_cache_info(capsys: pytest.CaptureFixture[str], kept: Path) -> None:
    found = reported(capsys, "cache", "info")
    assert (found["folder"], found["refused"], found["entries"], found["most"]) == (str(kept), None, 2, 2 << 30)
    assert {kind: x["entries"] for kind, x in found["kinds"].items()} == {"cpu": 1, "plan": 1}
    assert found["bytes"] == sum(x["bytes"] for x in found["kinds"].values()) > 1000
    assert main(["cache", "info"]) == 0
    assert str(kept) in capsys.readouterr().out


def test_cache_verify_names_what_is_damaged(capsys: pytest.CaptureFixture[str], kept: Path) -> None:
    assert reported(capsys, "cache", "verify") == {"ok": True, "checked": 2, "damaged": []}
    bad = kept / "v1" / "cpu" / "b.so"
    bad.write_bytes(bad.read_bytes()[:-1])
    assert reported(capsys, "cache", "verify", code=1) == {"ok": False, "checked": 2, "damaged": [str(bad)]}
    assert main(["cache", "verify"]) == 1
    assert f"damaged: {bad}" in capsys.readouterr().out


def test_cache_clear_removes_our_entries_alone(capsys: pytest.CaptureFixture[str], kept: Path) -> None:
    found = reported(capsys, "cache", "clear")
    assert (found["ok"], found["removed"], found["left"]) == (True, 2, 0)
    assert [p.name for p in kept.rglob("*") if p.is_file()] == ["letter.txt"]
    assert reported(capsys, "cache", "info")["entries"] == 0


def test_cache_of_a_folder_that_is_refused(capsys: pytest.CaptureFixture[str], kept: Path) -> None:
    kept.chmod(0o777)
    assert "others may write to it" in reported(capsys, "cache", "info", code=1)["refused"]
    assert main(["cache", "clear"]) == 1
    assert "is left alone: others may write to it" in capsys.readouterr().err
    assert (kept / "v1" / "plan" / "a.json").exists()


def test_cache_where_there_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EINFUSE_CACHE", str(tmp_path / "none"))
    assert reported(capsys, "cache", "info")["entries"] == 0
    assert reported(capsys, "cache", "verify")["checked"] == 0
    assert reported(capsys, "cache", "clear")["removed"] == 0
    assert not (tmp_path / "none").exists()


# -- usage ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["check"],
        ["emit", "full"],
        ["emit", "full", "--backend", "cuda"],
        ["ir", "full", "--after", "magic"],
        ["verify"],
        ["verify", "full", "--all"],
        ["bench", "full", "--length", "0"],
        ["passes", "full", "--param", "window"],
        ["emit", "full", "--backend", "cpu", "--size", "D=wide"],
    ],
)
def test_wrong_usage_exits_with_two(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage: einfuse" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["ir"], ["passes"], ["emit", "--backend", "cpu"], ["verify"], ["bench"], ["demo"]])
@pytest.mark.parametrize(("spec", "phrase"), [("caussal", "causal"), ("no/such.attn", "no file"), (".", "no spec")])
def test_a_spec_that_does_not_exist(command: list[str], spec: str, phrase: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, spec]) == 1
    printed = capsys.readouterr().err
    assert phrase in printed
    assert "Traceback" not in printed


def test_a_parameter_that_does_not_exist(capsys: pytest.CaptureFixture[str], good: str) -> None:
    assert main(["ir", good, "-p", "windo=3"]) == 1
    assert "windo" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_process(bad: str) -> None:
    run = subprocess.run([sys.executable, "-m", "einfuse", "check", bad], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr.startswith("error ")
    assert "Traceback" not in run.stderr
