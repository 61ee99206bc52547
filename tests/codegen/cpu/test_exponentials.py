"""Exponentials of differences as powers of two: which ones, and that they are the same numbers."""

import math

import pytest
from plans import Code

from einfuse.codegen.exponentials import powers
from einfuse.codegen.plan import Block, Const, Fold, KernelPlan, Map, Op, Phase, Value
from einfuse.ir import FUNCTIONS

pytestmark = pytest.mark.optimised

ORDER = ("i", "j")


def plan(body: tuple[Op, ...]) -> KernelPlan:
    zero = Value("zero", (), "int")
    fold = Fold("j", 16, (), (), (Phase(zero, zero, body, (), "full"),), size="N")
    return KernelPlan("p", "", (), Block("i", "N", 16), (), (), (), ("N",), (fold,))


def rewritten(c: Code) -> list[Op]:
    fold = powers(plan(c.region)).steps[0]
    assert isinstance(fold, Fold)
    return list(fold.phases[0].body)


def value(ops: list[Op], name: str, known: dict[str, float]) -> float:
    """A value of a region at one point."""
    for op in ops:
        if isinstance(op, Map):
            known[op.out.name] = FUNCTIONS[op.fn].fold(*(known[a.name] for a in op.args))
        elif isinstance(op, Const):
            known[op.out.name] = op.value
    return known[name]


def exponential(scaled: bool, shift: tuple[str, ...]) -> Code:
    c = Code(ORDER)
    y, m, t = (Value(n, d, "float") for n, d in (("y", ORDER), ("m", shift), ("t", ())))
    s = c.map("s", "*", t, y) if scaled else y
    c.map("p", "exp", c.map("x", "-", s, m))
    return c


@pytest.mark.parametrize("scaled", [True, False])
def test_a_score_minus_its_rows_maximum(scaled: bool) -> None:
    ops = rewritten(exponential(scaled, ("i",)))
    scaled_by = ops[-2]
    assert isinstance(scaled_by, Map)
    assert ops[-1] == Map(Value("p", ORDER, "float"), "exp2", (scaled_by.out,))
    assert scaled_by == Map(scaled_by.out, "*", (Value("x", ORDER, "float"), Value("p.exponent.base", (), "float")))
    known = {"y": 3.0, "m": 1.5, "t": 0.25}
    assert value(ops, "p", known) == pytest.approx(math.exp(3.0 * (0.25 if scaled else 1) - 1.5), rel=1e-14)


def test_other_exponentials_stay() -> None:
    c = exponential(True, ORDER)  # what is subtracted differs from point to point
    assert rewritten(c) == c.ops
    c = Code(ORDER)
    c.map("p", "exp", Value("y", ORDER, "float"))
    assert rewritten(c) == c.ops
