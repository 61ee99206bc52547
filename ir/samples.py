"""Expressions over pairs at random queries and keys: the matrices of the rank test in `ir.cut`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

from einfuse.ir import expr as ex
from einfuse.ir.cut import POINTS, WIDTH, Cut
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Expr
from einfuse.ir.rewrite import types_of
from einfuse.ir.separability import nonnegative

Array = npt.NDArray[Any]


class Sample:
    """Expressions at random queries and keys; what is of one side alone is a random number for every one of them."""

    def __init__(self, cut: Cut, seed: int) -> None:
        self.cut, self.generator = cut, np.random.default_rng(seed)
        self.known: dict[Expr, Array] = {}
        self.types = types_of(cut.cascade)

    def matrix(self, e: Expr) -> Array:
        """The values for every query and key."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.asarray(self.value(e), float), (POINTS, POINTS))

    def value(self, e: Expr) -> Array:
        if not self.cut.pair(e):
            return self._alone(e)
        if e not in self.known:
            self.known[e] = self._of_pairs(e)
        return self.known[e]

    def _of_pairs(self, e: Expr) -> Array:
        if e.op != "load":
            args = list(map(self.value, e.args))
            if e.op in ("/", "//", "%"):
                args[1] = np.where(args[1] == 0, 1, args[1])  # a point that says nothing
            return np.asarray(FUNCTIONS[e.op].of(np)(*args))
        x = self.cut.definition(e)
        points = itertools.product(range(WIDTH), repeat=len(x.over))
        values = [self.value(self.cut.opened(e, dict(zip(x.over, map(ex.const, p), strict=True)))) for p in points]
        return np.sum(np.broadcast_arrays(*values), 0) if x.over else values[0]

    def _alone(self, e: Expr) -> Array:
        if e.op == "const":
            return np.asarray(e.value)
        if e not in self.known:
            side = self.cut.side(e)
            shape = [POINTS if r in side else 1 for r in self.cut.sides]
            kind = ex.scalar_type(e, lambda n: self.types.get(n, "float"))
            if e.op == "index" and side:
                self.known[e] = np.arange(POINTS).reshape(shape)
            elif kind == "float":
                low, high = (0.3, 1.3) if nonnegative(e) else (-2.0, 2.0)
                self.known[e] = self.generator.uniform(low, high, shape)
            else:
                x = self.generator.integers(e.op == "size", 7 if kind == "int" else 2, shape)  # there is a point of every rank
                self.known[e] = x if kind == "int" else x.astype(bool)
        return self.known[e]
