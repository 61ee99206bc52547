"""The registry of passes: its table in the docs, the properties that it states, and the pass language of `einfuse opt`."""

from __future__ import annotations

import re
from pathlib import Path

import corpus
import pytest
import torch

import einfuse
from einfuse.ir import EinfuseError, SpecError, debug
from einfuse.ir.passes import opt, pipeline, registry
from einfuse.ir.passes.sequence import PIPELINE

DOC = Path(__file__).parents[2] / "docs" / "architecture.md"
TABLE = re.compile(r"(?<=<!-- passes -->\n).*?(?=<!-- end of passes -->)", re.DOTALL)


def test_the_table_in_the_docs_is_the_registry(request: pytest.FixtureRequest) -> None:
    """`pytest --update-golden` writes it."""
    text = DOC.read_text(encoding="utf-8")
    if request.config.getoption("--update-golden"):
        DOC.write_text(TABLE.sub(lambda _: registry.table(), text), encoding="utf-8")
    else:
        assert TABLE.findall(text) == [registry.table()]


def test_names_are_given_once() -> None:
    names = [p.name for p in (*PIPELINE, *registry.TRANSFORMS)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", corpus.BODIES)
def test_a_stage_has_what_the_next_pass_requires(name: str) -> None:
    """Step by step, with every property checked before and after, the pipeline comes to the same cascade."""
    built = corpus.cascade(name)
    assert opt.apply(opt.default(built), built) == [pipeline.run(built)]


def test_tiles_come_after_what_does_not_depend_on_them() -> None:
    built = corpus.cascade("softmax")
    assert pipeline.with_tiles(pipeline.before_tiles(built), 32, 16) == pipeline.run(built, 32, 16)


def test_a_pass_says_what_it_needs() -> None:
    built = corpus.cascade("softmax")
    with pytest.raises(SpecError, match=r"schedule needs a cascade that is fused: .*\(V9\)(.|\n)*run online_fuse first"):
        opt.apply(opt.parse("schedule"), built)
    with pytest.raises(EinfuseError, match="chunk is for cascades with a scan"):
        opt.apply(opt.parse("infer_space,chunk"), built)
    with pytest.raises(EinfuseError, match="tail does not apply to softmax"):
        opt.apply(opt.parse("canonicalise,tail"), built)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a list of passes"),
        ("canonicalise;online_fuse", "is not a list of passes"),
        ("fuse", "there is no pass 'fuse'; the passes are build, infer_space, "),
        ("schedule{blocks=3}", "'blocks=3' is no option of schedule: its options are block, step"),
        ("canonicalise{strict}", "'strict' is no option of canonicalise: it has none"),
        ("schedule{block=wide}", "'wide' is no value for block of schedule"),
        ("online_fuse{strict=yes}", "'yes' is no value for strict of online_fuse"),
    ],
)
def test_what_is_no_pass_is_refused(text: str, message: str) -> None:
    with pytest.raises(EinfuseError, match=re.escape(message)):
        opt.parse(text)


def test_options_reach_the_pass() -> None:
    (step,) = opt.parse("schedule{block=128 step=32}")
    assert step.options == {"block": 128, "step": 32}
    assert [s.of.name for s in opt.parse("canonicalise, differentiate{wanted=q,k}")] == ["canonicalise", "differentiate"]


def test_passes_are_shown_where_the_environment_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built = corpus.cascade("softmax")
    monkeypatch.setenv(debug.VARIABLE, "passes")
    pipeline.run(built)
    shown = re.findall(r"^# softmax after (\w+)$", capsys.readouterr().err, re.MULTILINE)
    assert shown == [p.name for p in PIPELINE if p.name != "chunk"]
    monkeypatch.setenv(debug.VARIABLE, "passes,plans")
    with pytest.raises(ValueError, match=f"EINFUSE_DEBUG names plans; its topics are {', '.join(debug.TOPICS)}"):
        pipeline.run(built)


def test_what_a_call_makes_and_launches_is_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EINFUSE_CACHE", str(tmp_path))
    monkeypatch.setenv(debug.VARIABLE, "plan,source,launch")
    text = """attention shown over b, h {
  rank i: query; rank j: key; rank d: feature
  in q[b, h, i, d]; in k[b, h, j, d]
  s[i] = sum[j, d](q * k)
  out s
}"""
    q = torch.ones(1, 1, 3, 4)
    einfuse.compile(text, backend="torch")(q, q)
    shown = capsys.readouterr().err
    assert "# plan shown for torch\nkernel shown compute f32" in shown
    assert "# source shown for torch\n# shown" in shown
    assert "# launch shown " in shown
    assert "Nq = 3" in shown
