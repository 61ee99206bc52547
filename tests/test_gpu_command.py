"""benchmarks/gpu.py without a GPU: what it says there, and that its parts work on the CPU (kernels in Triton's interpreter)."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import einfuse

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command and its parts, imported as the command imports them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return {name: importlib.import_module(name) for name in ("gpu", "gpu_check", "gpu_peers", "gpu_time")}


def test_without_a_gpu_it_says_so(parts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parts["gpu"].main([]) == 0
    assert "no GPU found" in capsys.readouterr().out


def test_missing_packages_are_named(parts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parts["gpu"], "NEEDED", ("torch", "no_such_package"))
    assert parts["gpu"].main([]) == 2
    assert "missing Python packages: no_such_package" in capsys.readouterr().out


def test_the_result_is_json_with_the_devices_name(parts: Any, tmp_path: Path) -> None:
    result = {"device": "NVIDIA H100 80GB", "times": [{"ratio": float("nan"), "tflops": float("inf")}]}
    path = parts["gpu"].write(result, tmp_path)
    assert path.name == "nvidia-h100-80gb.json"
    assert json.loads(path.read_text())["times"] == [{"ratio": None, "tflops": None}]


@pytest.mark.slow
def test_a_check_compares_values_and_gradients(
    parts: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = parts["gpu_check"]
    monkeypatch.setattr(check, "SHAPES", {"small": check.Shape(batch=1, heads=2, queries=9, keys=11, widths=(16, 16), group=1)})
    check.check_one("alibi", "cpu")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(p["dtype"], p["shape"]) for p in printed] == [("float32", "small"), ("bfloat16", "small")]
    for p in printed:
        assert {r["what"] for r in p["rows"]} == {"out 0", "d q", "d k", "d v", "d slope"}
        assert all(r["ok"] for r in p["rows"])


def test_a_process_that_dies_is_a_failure_and_the_rest_is_kept(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = parts["gpu_check"]
    script = tmp_path / "dies.py"
    script.write_text('print(\'{"dtype": "float32", "shape": "odd", "rows": []}\')\nraise SystemExit("device lost")\n')
    monkeypatch.setattr(check, "__file__", str(script))
    rows, failures, unreached = check.check_all(["full"], 1, time.monotonic() + 60, lambda text: None)
    assert rows == []
    assert [f["error"].strip() for f in failures] == ["device lost"]
    assert unreached == ["full bfloat16 odd", "full float32 even", "full bfloat16 even"]


def test_after_the_deadline_nothing_is_begun(parts: Any) -> None:
    past = time.monotonic() - 1
    assert parts["gpu_check"].check_all(["full"], 1, past, lambda text: None)[2][0] == "full float32 odd"
    times, unreached = parts["gpu_time"].time_all(["full"], past, lambda text: None, "cpu")
    assert times == []
    assert unreached[0] == "full B4 H16 S4096 D64"


def test_every_variant_is_in_the_library(parts: Any) -> None:
    assert {v.name for v in parts["gpu_peers"].VARIANTS} <= {s.name for s in einfuse.list_specs()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # flex_attention warns that it is not compiled
@pytest.mark.parametrize("name", ["causal", "full", "alibi", "alibi_window", "softcap", "document", "prefix", "head_bias"])
def test_a_peer_computes_what_the_spec_says(parts: Any, name: str) -> None:
    peers = parts["gpu_peers"]
    (variant,) = [v for v in peers.VARIANTS if v.name == name]
    x = peers.inputs(variant, 2, 2, 270 if "window" in name else 40, 16, torch.float32, "cpu")
    x = {n: t.detach() for n, t in x.items()}  # flex_attention has no backward on CPU
    run = peers.peers(variant, x, compiled=False)["flex_attention"]
    exact = einfuse.compile(name).reference(**x)
    with torch.no_grad():
        torch.testing.assert_close(run().double(), exact, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_timing_has_both_directions(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timing = parts["gpu_time"]
    ticks = iter(range(1, 10_000))
    monkeypatch.setattr(timing, "_milliseconds", lambda run: float(run() is not None) * next(ticks))
    monkeypatch.setattr(timing, "SHAPES", ((1, 2, 32, 16),))
    monkeypatch.setattr(timing, "REPEATS", 3)
    times, unreached = timing.time_all(["causal"], time.monotonic() + 300, lambda text: None, "cpu")
    assert unreached == []
    assert {(t.peer, t.direction) for t in times if t.ratio > 0} >= {("sdpa flash", "forward"), ("sdpa flash", "backward")}
    assert all(t.remark == "" or "none:" in t.remark for t in times), [t.remark for t in times]
    assert sys.modules["gpu_time"] is timing
