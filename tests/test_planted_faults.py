"""Faults as kernels have them are found: a few specs here, the whole library in `benchmarks/bound.py faults`."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import einfuse
from einfuse.runtime.bound import Trial
from einfuse.runtime.verify import Shape, example_inputs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHAPE = Shape(1, 2, 19, 27, (6, 8), 2)
SPECS = ("causal", "t5_bias", "sigmoid", "cosine", "delta")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("planted")


def trial(name: str, dtype: torch.dtype) -> Trial:
    cascade = einfuse.compile(name).cascade
    return Trial(cascade, example_inputs(cascade, dtype, 0, SHAPE), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_kind_of_fault_is_found(planted: Any, dtype: str) -> None:
    kinds = planted.faults(dtype)
    assert len(kinds) >= 8
    missed, seen = [], set()
    for name in SPECS:
        one = trial(name, getattr(torch, dtype))
        for fault in kinds:
            found = planted.planted(one, fault, 1)
            if found is not None:
                seen.add(fault)
                missed += [] if planted.caught(one, found) else [(name, fault)]
    assert missed == []
    assert seen == set(kinds), "every kind is in one of these specs"


def test_the_truth_itself_is_no_fault(planted: Any) -> None:
    one = trial("causal", torch.float32)
    assert not planted.caught(one, {what: x.to(one.dtype) for what, x in one.truth.items()})
    assert planted._off(one.truth["out 0"], one.truth["out 0"], one.dtype) == 0


def test_the_derived_backward_and_the_tiled_forward_without_a_fault_are_the_truth(planted: Any) -> None:
    one = trial("causal", torch.float64)
    backward = planted._backward(one, lambda c: c)
    forward = planted._merged("none")(one, planted.random.Random(0))
    assert set(backward) | set(forward) == set(one.truth)
    for what, x in (backward | forward).items():
        torch.testing.assert_close(x, one.truth[what], rtol=1e-9, atol=1e-9)
