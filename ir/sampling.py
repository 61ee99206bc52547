"""Expressions at random points, and on random branches: what vanishes at all of them is taken to be zero."""

from __future__ import annotations

import math
import random

from einfuse.ir import expr as ex
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Expr

_ORDERS = frozenset({"<", "<=", ">", ">="})


def sample(e: Expr, rng: random.Random, values: dict[Expr, float], branches: dict[Expr, bool] | None) -> tuple[float, float]:
    """A random evaluation of ``e`` (leaves positive), and the largest magnitude met on the way; ``branches``: which way comparisons go,
    drawn where they are new, or None for the way that the values go. An equality is a guard and no branch: it goes as the values do."""
    if e.op == "const":
        return float(e.value), abs(float(e.value))  # type: ignore[arg-type]
    if e.op in ex.LEAVES:
        value = values.setdefault(e, rng.uniform(0.4, 2.0))
        return value, abs(value)
    taken = None if branches is None else _branch(e, rng, branches)
    if taken is not None:
        return sample(taken, rng, values, branches)
    parts = [sample(a, rng, values, branches) for a in e.args]
    try:
        value = float(FUNCTIONS[e.op].fold(*(p[0] for p in parts)))
    except (ArithmeticError, ValueError, TypeError):
        value = math.nan
    return value, max(abs(value), *(p[1] for p in parts))


def _branch(e: Expr, rng: random.Random, branches: dict[Expr, bool]) -> Expr | None:
    """The side that ``e`` stands for, the same for every comparison of the same two sides; None for what has one side only."""

    def holds(condition: Expr) -> bool:
        return branches.setdefault(condition, rng.random() < 0.5)

    rule = FUNCTIONS[e.op].cases
    if rule is None:
        return None
    condition, yes, no = rule(*e.args)
    return (yes if holds(condition) else no) if condition.op in _ORDERS else None
