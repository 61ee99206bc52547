"""The statements of a block of a scan: matrix products, sums along a rank, running sums, triangular systems, arithmetic at every point."""

from __future__ import annotations

from einfuse.codegen.lowering.statements import signed
from einfuse.codegen.plan import Value
from einfuse.codegen.scan.points import PairExpressions
from einfuse.ir import Einsum, Expr, State
from einfuse.ir import index as coordinate
from einfuse.ir.expr import indices, load
from einfuse.ir.statements import equation


def statement(e: PairExpressions, x: Einsum) -> Value:
    """The value of a statement; beyond its condition 0, or what its reducer starts from."""
    blocks = e.blocks
    if x.reducer.solves:
        return _solved(e, x)
    if x.reducer.sums and x.mask is not None:
        found = _prefix(e, x, x.over[0], x.mask)
        if found is not None:
            return found
    mask = e.value(x.mask) if x.mask is not None else None
    if x.red is None:
        value = e.value(x.map, x.target)
        return value if mask is None else blocks.map("select", mask, blocks.as_float(value), blocks.const(0.0), name=x.target)
    (rank,) = x.over
    if x.reducer.sums:
        return _sum(e, x, rank, mask)
    value = blocks.masked(blocks.as_float(e.value(x.map)), mask, x.reducer.identity)
    return blocks.reduce(x.red, value, rank, x.target)


def shaped(e: PairExpressions, value: Value, y: Einsum | State) -> Value:
    """The value at every coordinate of the ranks it is declared with, as a float."""
    value = e.blocks.as_float(value)
    return e.blocks.broadcast(value, set(y.ranks) - set(value.dims), y.target)


def _prefix(e: PairExpressions, x: Einsum, rank: str, mask: Expr) -> Value | None:
    """A sum over all points before (or after) each one, of what does not depend on that one: running sums."""
    sides = [a.value if a.op == "index" else None for a in mask.args]
    moving = {e.fold.rank, *e.fold.aligned}
    if mask.op not in ("<", "<=", ">", ">=") or rank not in sides or not set(sides) <= moving:
        return None
    (kept,) = (s for s in sides if s != rank)
    assert isinstance(kept, str), "both sides are ranks"
    if kept in indices(x.map):
        return None
    upwards = (mask.op in ("<", "<=")) == (sides[0] == rank)
    sums = e.blocks.prefix(e.blocks.as_float(e.value(x.map)), rank, not upwards, mask.op in ("<", ">"), x.target)
    return e.blocks.relabelled(sums, rank, kept)


def _sum(e: PairExpressions, x: Einsum, rank: str, mask: Value | None) -> Value:
    """A sum of products: a matrix product where two groups of factors meet only in the summed rank."""
    blocks = e.blocks
    sign, parts = signed(x.map)
    values = [blocks.as_float(e.value(p)) for p in parts]
    groups = _groups(e, [v for v in values if rank in v.dims], rank, mask)
    chosen = mask is not None and rank in mask.dims and not any({*mask.dims} <= {*v.dims} for v in values)
    out = _contracted(e, x, rank, groups, narrow=not chosen)  # what a condition alone weighs is added up as it is
    for v in values:
        if rank not in v.dims:
            out = blocks.map("*", out, v)
    out = blocks.map("neg", out) if sign < 0 else out
    return out if mask is None or rank in mask.dims else blocks.masked(out, mask, 0.0)


def _groups(e: PairExpressions, values: list[Value], rank: str, mask: Value | None) -> list[Value]:
    """The products of factors of the same ranks, with the mask in those that have its ranks."""
    blocks, groups = e.blocks, dict[tuple[str, ...], Value]()
    for v in values:
        groups[v.dims] = blocks.map("*", groups[v.dims], v) if v.dims in groups else v
    if mask is not None and rank in mask.dims:
        inside = [g for g in groups if set(mask.dims) <= set(g)]
        for g in inside:  # all of them: 0 times what another one is beyond the mask must be 0
            groups[g] = blocks.masked(groups[g], mask, 0.0)
        if not inside:
            groups[mask.dims] = blocks.map("select", mask, blocks.const(1.0), blocks.const(0.0))
    alone = groups.pop((rank,), None)
    if alone is not None and groups:
        least = min(groups, key=len)
        groups[least] = blocks.map("*", groups[least], alone)
    elif alone is not None:
        groups[rank,] = alone
    return list(groups.values())


def _contracted(e: PairExpressions, x: Einsum, rank: str, groups: list[Value], narrow: bool) -> Value:
    blocks, others = e.blocks, [set(g.dims) - {rank} for g in groups]
    if len(groups) == 2 and all(len(s) == 1 for s in others) and not others[0] & others[1]:
        a, b = sorted(groups, key=lambda g: blocks.other(g, rank))
        return blocks.dot(a, b, rank, x.target, narrow=narrow)
    return blocks.reduce("sum", blocks.product(groups or [blocks.const(1.0)]), rank, x.target)


def _solved(e: PairExpressions, x: Einsum) -> Value:
    base, share = equation(x)
    matrix, i, (r, *_) = share.args[0], e.fold.rank, e.fold.aligned
    assert matrix.op == "load", "the matrix of an equation is a statement"
    transposed = matrix.args == (coordinate(r), coordinate(i))
    m = e.value(load(matrix.name, coordinate(i), coordinate(r)))
    return e.blocks.solve(m, shaped(e, e.value(base), x), transposed, x.target)
