"""Lowering: what every back end may take for granted of the names in a plan."""

from __future__ import annotations

import pytest

import einfuse
from einfuse.codegen import KernelPlan
from einfuse.codegen.plan import Fold, Store


def names(region: object) -> list[str]:
    assert isinstance(region, tuple)
    return [op.out.name for op in region if not isinstance(op, Store)]


def outside(plan: KernelPlan) -> list[str]:
    """The names defined outside of the loops' bodies."""
    out: list[str] = []
    for step in plan.steps:
        out += [s.value.name for s in step.states] + names(step.bounds) if isinstance(step, Fold) else names(step)
    return out


@pytest.mark.parametrize("name", ["lookhere", "swin", "t5_bias", "document"])
def test_a_name_outside_of_a_loop_is_no_name_inside(name: str) -> None:
    """The two phases of a loop use the same names; what one of them hoisted must not be one of the other's."""
    for plan in einfuse.compile(name).plans("cpu", backward=True):
        outer = outside(plan)
        assert len(outer) == len(set(outer))
        for step in plan.steps:
            for phase in step.phases if isinstance(step, Fold) else ():
                inner = names(phase.body)
                assert len(inner) == len(set(inner))
                assert not set(inner) & set(outer)
