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
from einfuse.codegen import KernelPlan
from einfuse.runtime.inside import launched

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command and its parts, imported as the command imports them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return {
        name: importlib.import_module(name)
        for name in ("gpu", "gpu_check", "gpu_peers", "gpu_search", "gpu_time", "gpu_workers")
    }


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
def test_a_check_compares_values_and_gradients(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check = parts["gpu_check"]
    monkeypatch.setattr(check, "SHAPES", {"small": check.Shape(batch=1, heads=2, queries=9, keys=11, widths=(16, 16), group=1)})
    rows = check.check("alibi", "bfloat16", "small", "cpu")
    assert {r["what"] for r in rows} == {"out 0", "d q", "d k", "d v", "d slope"}
    assert all(r["ok"] for r in rows)
    json.dumps(rows)


def test_a_process_that_dies_or_hangs_takes_its_own_task_alone(parts: Any) -> None:
    workers = parts["gpu_workers"]
    calls = [
        ("math:sqrt", (4.0,)),
        ("os:_exit", (3,)),
        ("math:sqrt", (-1.0,)),
        ("subprocess:check_call", (["sleep", "60"],), 1.0),  # which would outlive the process that waits for it
        ("math:sqrt", (9.0,)),
    ]
    said: list[str] = []
    start = time.monotonic()
    found = workers.run(
        [workers.Task(*x) for x in calls], 1, time.monotonic() + 60, lambda answer: said.append(answer.task.function)
    )
    assert [x.value for x in found] == [2.0, None, None, None, 3.0]
    assert [x.error for x in found[1:4]] == [
        "the process ended with code 3",
        "ValueError: math domain error",
        "no answer in 1 s",
    ]
    assert said == [c[0] for c in calls]
    assert time.monotonic() - start < 40


def test_failures_are_kept_apart_from_rows_and_from_what_was_not_reached(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check, workers = parts["gpu_check"], parts["gpu_workers"]
    row = {"name": "a", "backend": "triton", "dtype": "float32", "what": "out 0", "error": 0.0, "allowed": 1.0, "ok": True}

    def answers(tasks: Any, *_: Any) -> Any:
        given = [
            workers.Answer(tasks[0], "not of a check"),
            workers.Answer(tasks[1], [row]),
            workers.Answer(tasks[2], error="device lost"),
        ]
        return [*given, *(workers.Answer(t, reached=False) for t in tasks[3:])]

    monkeypatch.setattr(workers, "run", answers)
    before = [workers.Task("gpu_time:attention", ("full",))]
    rows, failures, unreached = check.check_all(["a", "b"], 1, 0.0, lambda text: None, before=before)
    assert [r.name for r in rows] == ["a"]
    assert failures == [{"name": "b bfloat16 odd", "error": "device lost"}]
    assert unreached[0] == "a float32 odd"
    assert len(unreached) == 6


def test_after_the_deadline_nothing_is_begun(parts: Any) -> None:
    past = time.monotonic() - 1
    assert parts["gpu_check"].check_all(["full"], 1, past, lambda text: None)[2][0] == "full bfloat16 odd"
    times, unreached = parts["gpu_time"].time_all(["full"], past, lambda text: None)
    assert times == []
    assert unreached[0] == "attention full B4 H16 S4096 D64 bfloat16"


@pytest.mark.slow
def test_a_forced_tiling_is_the_one_that_is_launched(parts: Any) -> None:
    search = parts["gpu_search"]
    ways = search.Ways(search.Way(64, 128, 4, 2), search.Way(64, 64, 8, 1, False), search.Way(32, 64, 2, 3))
    backend = search.Forced(target="sm_90", processors=132, ways=ways)
    attention = einfuse.compile("causal")
    tensors = {n: torch.empty(1, 2, 512, 64, dtype=torch.bfloat16, device="meta") for n in "qkv"}
    found = {x.kernel.plan.name: x.kernel for x in launched(attention, tensors, {}, True, backend)}
    for name, way in (("causal", ways.forward), ("causal_rows", ways.rows), ("causal_columns_j", ways.columns)):
        plan, text = found[name].plan, found[name].source
        assert isinstance(plan, KernelPlan)
        assert plan.tile is not None
        assert plan.tile.block == way.tile
        assert {s.step for s in plan.folds} == {way.step}
        assert f'"num_warps": {way.warps}, "num_stages": {way.stages}' in text
        assert ("TensorDescriptor" in text) == way.descriptors


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
    monkeypatch.setattr(timing, "REPEATS", 3)
    times = timing.attention("causal", (1, 2, 32, 16), "bfloat16", False, "cpu")
    assert {(t["peer"], t["direction"]) for t in times if t["ratio"] > 0} >= {
        ("sdpa flash", "forward"),
        ("sdpa flash", "backward"),
    }
    assert all(t["remark"] == "" or "none:" in t["remark"] for t in times), [t["remark"] for t in times]
    assert sys.modules["gpu_time"] is timing
