"""The error allowed to kernels: what it depends on, and what it does not."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

import einfuse
from einfuse.runtime import bound
from einfuse.runtime.bound import Trial
from einfuse.runtime.verify import Shape, example_inputs

SHAPE = Shape(2, 2, 9, 11, (6, 8), 2)
HEAD = "attention a over b, h { rank i: query; rank j: key; rank d, e: feature; in q[b, h, i, d]; in k[b, h, j, d]; in v[b, h, j, e];"


def trial(spec: str, dtype: torch.dtype = torch.float32, seed: int = 0, gradients: bool = True) -> Trial:
    cascade = einfuse.compile(spec).cascade
    return Trial(cascade, example_inputs(cascade, dtype, seed, SHAPE), dtype, gradients, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_it_goes_with_the_dtype(dtype: torch.dtype) -> None:
    one = trial("causal", dtype)
    for what, truth in one.truth.items():
        relative = one.compared(what, truth).allowed / truth.abs().max().item() / torch.finfo(dtype).eps
        assert 2 < relative < 200, (what, relative)
        assert one.compared(what, truth).error == 0


def test_what_cancels_in_theory_alone_is_allowed_an_error() -> None:
    """With one live key the weight is 1, and its gradient the difference of equal numbers."""
    one = trial(HEAD + "s = sum[d](q * k) where j < 1; o[i, e] = sum[j](softmax[j](s) * v); out o }")
    assert one.truth["d k"].abs().max() < 1e-12
    assert 1e-7 < one.compared("d k", one.truth["d k"]).allowed < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_backward_may_read_outputs_as_they_were_stored(dtype: torch.dtype) -> None:
    """Where nearly all weight is on one key, the gradient of a score is the difference of two numbers that are nearly the same, and kernels
    take one of them from outputs in 16 bits."""
    spec = HEAD + "s = sum[d](q * k) + (12 if j == i else 0); o[i, e] = sum[j](softmax[j](s) * v); out o }"
    one = trial(spec, dtype)
    found = one.run(einfuse.compile(spec, backend="torch"))
    assert all(one.compared(what, x).ok for what, x in found.items())
    assert one.compared("d q", found["d q"]).error > 0.1 * one.compared("d q", found["d q"]).allowed


def test_operands_of_a_minimum_that_are_equal_in_16_bits() -> None:
    """The first has the gradient, in kernels and in the oracle."""
    spec = HEAD + "s = sum[d](min(q, k)); o[i, e] = sum[j](softmax[j](s) * v); out o }"
    one = trial(spec, torch.bfloat16)
    q, k = (torch.as_tensor(one.inputs[n]) for n in "qk")
    assert (q[..., :, None, :] == k[..., None, :, :]).any(), "else nothing is shown"
    found = one.run(einfuse.compile(spec, backend="torch"))
    assert all(one.compared(what, x).ok for what, x in found.items())


def test_a_backward_may_add_up_the_same_scores_in_another_order() -> None:
    """A BLAS or a tile of another shape makes other scores of the same numbers than those that the statistics of the rows were taken of."""
    one = trial(HEAD + "s = 200 * sum[d](q * k); o[i, e] = sum[j](softmax[j](s) * v); out o }")
    q, k = (torch.as_tensor(one.inputs[n], dtype=torch.float64) for n in "qk")
    s, size = (200 * x @ y.mT for x, y in ((q, k), (q.abs(), k.abs())))
    coins = torch.randn(s.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sign()
    weights = (s + 2**-24 * size * coins - s.logsumexp(-1, keepdim=True)).exp()
    (direction,) = one.directions([one.truth["out 0"]])
    seen = one.compared("d v", weights.mT @ direction)
    assert 0.02 * seen.allowed < seen.error < seen.allowed


def test_what_no_rounding_reaches_is_allowed_none() -> None:
    one = trial(HEAD + "s = sum[d](q * k) where j < 0; o[i, e] = sum[j](softmax[j](s) * v); out o }")
    assert {one.compared(what, x).allowed for what, x in one.truth.items()} == {0.0}


def test_several_draws_at_once_are_as_large_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    together = trial("alibi")
    assert together._parts() == [1, bound.DRAWS - 1]
    monkeypatch.setattr(bound, "POINTS", 1)
    apart = trial("alibi")
    assert apart._parts() == [1] * bound.DRAWS
    for what, most in together.spread.items():
        assert most / 3 < apart.spread[what] < 3 * most, what


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_brief_trial_comes_to_the_same_verdicts(dtype: torch.dtype) -> None:
    whole = trial("alibi", dtype)
    for what, truth in whole.truth.items():
        allowed = whole.compared(what, truth).allowed
        for part in (0.0, 0.4, 0.99, 1.01, 10.0, math.inf):
            found = truth.clone()
            found.view(-1)[0] += part * allowed
            brief = replace(whole, brief=True)
            seen = brief.compared(what, found)
            assert seen.ok == whole.compared(what, found).ok == (part < 1), (what, part)
            assert seen.allowed <= allowed
            assert "spread" not in vars(brief) or part > 0.3, "most results need no more than a draw"


def test_inf_and_nan_never_pass() -> None:
    one = trial("full", gradients=False)
    found = one.truth["out 0"].float()
    assert one.compared("out 0", found).ok
    for bad in (math.inf, math.nan):
        found[0, 0, 0, 0] = bad
        assert one.compared("out 0", found).error == math.inf
        assert not one.compared("out 0", found).ok


def test_truth_that_is_no_number_compares_nothing() -> None:
    one = trial(HEAD + "o[i, e] = sum[j](sum[d](q * k) * log(-v * v)); out o }", gradients=False)
    seen = one.compared("out 0", one.truth["out 0"])
    assert math.isnan(seen.error)
    assert not seen.ok


def test_a_run_has_the_gradients_of_every_float_input() -> None:
    one = trial("t5_bias")
    found = one.run(einfuse.compile("t5_bias", backend="torch"))
    assert list(found) == list(one.truth) == ["out 0", "d q", "d k", "d v", "d table"]
    assert all(one.compared(what, x).ok for what, x in found.items())
    assert list(replace(one, gradients=False).run(einfuse.compile("t5_bias", backend="torch"))) == ["out 0"]


SCRIPT = """
import json, torch, einfuse
from einfuse.runtime.bound import Trial
from einfuse.runtime.verify import Shape, example_inputs
out = {}
for name in ("t5_bias", "delta"):
    for dtype in (torch.float32, torch.bfloat16):
        c = einfuse.compile(name).cascade
        t = Trial(c, example_inputs(c, dtype, 0, Shape(2, 2, 9, 9, (6, 8), 2)), dtype)
        out |= {f"{name} {dtype} {what}": t.compared(what, x).allowed for what, x in t.truth.items()}
"""


@pytest.mark.slow
def test_it_is_the_same_for_every_instruction_set_and_blas() -> None:
    """A process with the least of all beside this one, which has what the machine has."""
    least = {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OPENBLAS_CORETYPE": "Nehalem"}
    here: dict[str, Any] = {}
    exec(SCRIPT, here)
    done = subprocess.run(
        [sys.executable, "-c", f"{SCRIPT}print(json.dumps(out))"],
        env=os.environ | least,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == pytest.approx(here["out"], rel=1e-6)
