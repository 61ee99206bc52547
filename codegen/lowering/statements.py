"""Statements that reduce over no folded rank: arithmetic at every point, and reductions over feature ranks, which are held whole.

A sum of products is a matrix product where two groups of factors meet only in the summed rank.
"""

from __future__ import annotations

from einfuse.codegen.lowering.expressions import Expressions
from einfuse.codegen.plan import Value
from einfuse.ir import Einsum, Expr, SpecError, call, const
from einfuse.ir.expr import factors, product
from einfuse.ir.passes.classify_score import operands


def einsum(e: Expressions, x: Einsum) -> Value:
    """The value of a statement; one that is given out is there at every coordinate of its ranks."""
    value = e.value(x.map, x.target) if x.red is None else _reduced(e, x)
    missing = {r for r in x.ranks if r not in value.dims}
    return e.blocks.broadcast(value, missing, x.target) if missing and x.target in e.cascade.outs else value


def _reduced(e: Expressions, x: Einsum) -> Value:
    assert x.red is not None, "a map is not reduced"
    rank = x.over[-1]
    if len(x.over) > 1:
        raise SpecError(f"{x.target} reduces over {len(x.over)} feature ranks at once", x.loc, "reduce over one at a time")
    return _sum(e, x, rank) if x.reducer.sums else e.blocks.reduce(x.red, e.value(x.map), rank, x.target)


def _sum(e: Expressions, x: Einsum, rank: str) -> Value:
    blocks = e.blocks
    sign, parts = signed(x.map)
    values = [e.value(p) for p in parts]
    inside = [v for v in values if rank in v.dims]
    sides = operands([v.dims for v in inside], rank)
    if sides is not None:
        groups = [[inside[n] for n in side] for side in sides[:2]]
        first, second = sorted(groups, key=lambda g: blocks.other(g[0], rank))
        weights = [inside[n] for n in sides[2]]  # with the tile, they are multiplied in once
        a, b = blocks.product(first + weights), blocks.product(second)
        out = blocks.dot(a, b, rank, x.target)
    elif inside:
        out = blocks.reduce("sum", blocks.product(inside), rank, x.target)
    else:
        out = blocks.const(float(e.sizes.feature(rank)))
    for v in values:
        if rank not in v.dims:
            out = blocks.map("*", out, v)
    return blocks.map("neg", out) if sign < 0 else out


def signed(e: Expr) -> tuple[int, list[Expr]]:
    """The factors of a product (divisions by single factors included) and its sign."""
    if e.op == "neg":
        sign, parts = signed(e.args[0])
        return -sign, parts
    if e.op == "*":
        (s, a), (t, b) = signed(e.args[0]), signed(e.args[1])
        return s * t, a + b
    if e.op == "/":
        (s, a), (t, b) = signed(e.args[0]), signed(e.args[1])
        return s * t, [*a, call("/", const(1.0), product(*b))] if a != [const(1)] else [call("/", const(1.0), product(*b))]
    return 1, [e] if not factors(e)[1:] else list(factors(e))
