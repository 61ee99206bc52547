"""Every plan pass of every back end: the plan keeps its meaning, its rules and its text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from plans import CASES

import einfuse
from einfuse.codegen.cpu import source as cpu
from einfuse.codegen.plan import KernelPlan, PlanPass, finished, read, show, verify
from einfuse.codegen.plan.interpret import interpret
from einfuse.codegen.triton import simplify as triton

PASSES = {"cpu": cpu.PASSES, "triton": triton.PASSES}


def ran(
    plan: KernelPlan,
    tensors: dict[str, torch.Tensor],
    outs: dict[str, torch.Tensor],
    params: Mapping[str, float],
    sizes: Mapping[str, int],
) -> dict[str, torch.Tensor]:
    made = {n: torch.full_like(x, torch.nan if x.is_floating_point() else 0) for n, x in outs.items()}
    interpret(plan, {**tensors, **made}, params, sizes)
    return made


@pytest.mark.parametrize("backend", PASSES)
@pytest.mark.parametrize("name", CASES)
def test_a_pass_keeps_meaning_rules_and_text(name: str, backend: str) -> None:
    case = CASES[name](storage="f64")
    tensors, outs = case.tensors(case.sizes), case.outputs(case.sizes)
    plan = case.plan
    before = ran(plan, tensors, outs, case.params, case.sizes)
    for p in PASSES[backend]:
        plan = p.run(plan)
        verify(plan)
        assert read(show(plan)) == plan, p.name
    after = ran(plan, tensors, outs, case.params, case.sizes)
    for n, x in before.items():
        torch.testing.assert_close(
            after[n], x, rtol=1e-9, atol=1e-12, msg=functools.partial("{} of {}: {}".format, n, plan.name)
        )
    assert finished(case.plan, PASSES[backend]) == plan


@pytest.mark.parametrize("name", ["hard", "topk"])
def test_loops_that_share_kept_scores_mean_the_same(name: str) -> None:
    attention = einfuse.compile(name)
    plan = attention.plan("cpu", torch.float64, D=4, E=4)
    kept = finished(plan, cpu.PASSES)
    assert kept.kept
    assert read(show(kept)) == kept
    sizes = {"B": 1, "H": 2, "Nq": 5, "Nk": 7, "D": 4, "E": 4, "group": 1}
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64, generator=generator) for n in (5, 7, 7))
    params = {t.name: t.default for t in attention.cascade.inputs if t.param and t.default is not None}
    outs = {t.name: torch.zeros((1, 2, 5, 4)[: t.axes], dtype=torch.float64) for t in plan.tensors if t.out}
    found = [ran(p, {"q": q, "k": k, "v": v}, outs, params, sizes) for p in (plan, kept)]
    for n in outs:
        torch.testing.assert_close(found[1][n], found[0][n], rtol=1e-9, atol=1e-12)


def test_a_pass_that_breaks_a_rule_is_found() -> None:
    case = CASES["softmax"]()
    with pytest.raises(AssertionError, match="tensor of the plan"):
        finished(case.plan, (PlanPass("forgets its outputs", lambda plan: replace(plan, tensors=plan.tensors[:-1])),))
