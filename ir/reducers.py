"""Reducers: one object for each, which holds all that the compiler knows of it. The only list of them.

Passes ask what a reducer is (does it add up? does it choose coordinates?), never which one. Back ends write its `step` as the function of
that name; where a language has a reduction of its own, that is one line of a table in ``codegen/*/functions.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from einfuse.ir.nodes import DType, Scalar

LEAST, MOST = -(2**31), 2**31 - 1
"""The integers of kernels."""


@dataclass(frozen=True, slots=True)
class Reducer:
    """What makes one value of many; a monoid does so in any order and grouping."""

    name: str
    unit: float | None = None
    """The `identity` of a monoid."""
    combine: str = ""
    """The scalar function that makes one value of two."""
    tensors: Callable[[Any, Sequence[int]], Any] | None = None
    """Its value on tensors of torch along the last axes, which these are."""
    linear: bool = False
    """Whether the value is linear in what is reduced: factors and sums can be moved in and out of it."""
    extreme: str | None = None
    """How the value compares with all that is reduced, where it is one of them: a function of the IR."""
    chooses: bool = False
    """Whether it gives coordinates of values, the best first (of several ranks their row-major number)."""
    slots: bool = False
    """Whether it chooses as many as its target's last rank has points, which neither its map nor its mask sees."""
    solves: bool = False
    """Whether it makes the statement an equation in its own target."""
    replaces: bool = False
    """Whether it is the update of a scan's state, which replaces the value."""

    @property
    def monoid(self) -> bool:
        return self.unit is not None

    @property
    def identity(self) -> float:
        """The value of no points at all, which changes nothing."""
        assert self.unit is not None, f"{self.name} is no monoid"
        return self.unit

    @property
    def sums(self) -> bool:
        """Whether it adds up over ranks."""
        return self.linear and self != POINTWISE

    def gives(self, dtype: DType) -> DType:
        """The type of what is reduced of values of a type."""
        return "int" if self.chooses else "float" if dtype == "int" and self != POINTWISE else dtype

    def start(self, dtype: DType) -> Scalar:
        """The identity as a number of a type; the least or most integer where that is infinite."""
        if dtype == "bool":
            return self.identity > 0
        if dtype == "float":
            return self.identity
        return int(min(max(self.identity, LEAST), MOST))

    def step(self, dtype: DType) -> str:
        """The scalar function that makes one value of two of a type."""
        return {"max": "or", "+": "or", "min": "and", "*": "and"}[self.combine] if dtype == "bool" else self.combine


def _any(x: Any, axes: Sequence[int]) -> Any:
    return x.bool().any(dim=axes[0]) if len(axes) == 1 else x.bool().flatten(axes[0]).any(-1)


REDUCERS: dict[str, Reducer] = {
    r.name: r
    for r in (
        Reducer("sum", 0.0, "+", lambda x, axes: x.sum(axes), linear=True),
        Reducer("max", -math.inf, "max", lambda x, axes: x.amax(axes), extreme=">="),
        Reducer("min", math.inf, "min", lambda x, axes: x.amin(axes), extreme="<="),
        Reducer("prod", 1.0, "*", lambda x, axes: x.flatten(axes[0]).prod(-1)),
        Reducer("any", 0.0, "max", _any),
        Reducer("topk", chooses=True, slots=True),
        Reducer("argmax", chooses=True),
        Reducer("solve", solves=True),
        Reducer("set", replaces=True),
    )
}
POINTWISE = Reducer("", 0.0, linear=True)
"""Of a statement that reduces nothing. A point of it that does not exist is stored as 0."""
MISSING = LEAST
"""The coordinate in a slot that does not exist, because there are fewer candidates than slots."""
