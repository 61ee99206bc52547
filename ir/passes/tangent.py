"""Forward mode on cascades: the outputs and their derivative along a direction of the inputs, as one cascade.

    l[i] = sum[j] exp(s[i, j] - m[i])          ->    t_l[i] = sum[j] exp(s[i, j] - m[i]) * t_s[i, j]
    o[i, e] = sum[j] exp(s - m) / l * v[j, e]        t_o[i, e] = sum[j] exp(s - m) / l * (t_s * v + t_v) - ... * t_l[i]

The tangent of every statement is linear in the tangents of what it reads, and reduced as the statement itself is, so what was one pass
mostly stays one. A maximum that only stabilises has no tangent (as `differentiate` finds by checking, not by its name); any other
maximum takes the mean of the tangents at the points that attain it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.attained import attained
from einfuse.ir.derivative import derivative
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Einsum, Expr, Flat
from einfuse.ir.passes import canonicalise, differentiate
from einfuse.ir.rewrite import fresh


def tangent(name: str) -> str:
    """The name of the tangent of an input or output."""
    return f"t_{name}"


def run(cascade: Flat, along: Iterable[str]) -> Flat:
    """``cascade`` (as built) with an input ``t_x`` for every float input x in ``along``, and an output ``t_o`` behind every output o.

    Raises SpecError for a reducer without a derivative.
    """
    return _Forward(canonicalise.run(cascade), tuple(along)).run()


class _Forward:
    def __init__(self, cascade: Flat, along: tuple[str, ...]) -> None:
        self.c, self.along = cascade, along
        self.still = differentiate.invariant(cascade)
        self.taken = {t.name for t in cascade.inputs} | {x.target for x in cascade.body}
        self.names: dict[str, str] = {}  # what has a tangent, and its name
        self.body: list[Einsum] = []

    def run(self) -> Flat:
        inputs = list(self.c.inputs)
        for name in self.along:
            self.names[name] = fresh(tangent(name), self.taken)
            inputs.append(replace(self.c.input(name), name=self.names[name]))
        for x in self.c.body:
            self.body.append(x)
            self._statement(x)
        outs = []
        for name in self.c.outs:
            if name not in self.names:
                self.names[name] = fresh(tangent(name), self.taken)
                ranks = next(x.ranks for x in self.body if x.target == name)
                self.body.append(Einsum(self.names[name], ranks, None, (), ex.const(0.0)))
            outs.append(self.names[name])
        params = [t for t in inputs if t.param]
        tensors = [t for t in inputs if not t.param]
        return replace(
            self.c,
            name=f"{self.c.name}_jvp",
            inputs=(*tensors, *params),
            body=tuple(self.body),
            outs=(*self.c.outs, *outs),
        )

    def _statement(self, x: Einsum) -> None:
        if x.target in self.still:
            return
        total = self._linear(x)
        if ex.is_const(total, 0):
            return
        if not x.reducer.linear:
            if not x.reducer.extreme:
                raise SpecError(f"{x.red} has no derivative", x.loc, "use a sum or a maximum")
            total = self._shared(x, total)
        self.names[x.target] = fresh(tangent(x.target), self.taken)
        red = None if x.red is None else "sum"
        self.body.append(Einsum(self.names[x.target], x.ranks, red, x.over, total, x.mask, x.loc))

    def _linear(self, x: Einsum) -> Expr:
        """The derivative of the map along the tangents of what it reads."""
        total: Expr = ex.ZERO
        for read, where in _reads(x.map).items():
            slope = derivative(x.map, read) if read.name in self.names else ex.ZERO
            if not ex.is_const(slope, 0):
                moved = ex.load(self.names[read.name], *read.args)
                kept = moved if where is None else call("select", where, moved, ex.ZERO)
                total = ex.collected(total, call("*", slope, kept))
        return total

    def _shared(self, x: Einsum, total: Expr) -> Expr:
        """Of an extreme: the tangent of each point that attains it, over their number."""
        at_extreme = attained(x, self.c.body, self.c.ranks)
        ties = fresh(f"{x.target}_ties", self.taken)
        self.body.append(Einsum(ties, x.ranks, "sum", x.over, call("select", at_extreme, ex.const(1.0), ex.const(0.0)), x.mask))
        return call("select", at_extreme, call("/", total, ex.at(ties, x.ranks)), ex.const(0.0))


def _reads(e: Expr) -> dict[Expr, Expr | None]:
    """Every load, and where its value counts (None: everywhere): elsewhere its tangent may lie outside of its tensor, as it may itself."""
    found: dict[Expr, list[Expr | None]] = {}
    for read, guard in ex.guarded(e):
        found.setdefault(read, []).append(ex.conjunction(*guard))
    return {read: _either(parts) for read, parts in found.items()}


def _either(parts: list[Expr | None]) -> Expr | None:
    known = [p for p in dict.fromkeys(parts) if p is not None]
    return functools.reduce(functools.partial(call, "or"), known) if None not in parts else None
