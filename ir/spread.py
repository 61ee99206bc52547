"""The adjoint of a read of features at computed coordinates, as a product with a matrix of ones and zeros.

    d_k[j, r % D] += g[j, r]   for every r     ->     d_k[j, d] += sum[r] g[j, r] * (d == r % D)

The product stays in the kernel, and all reads of a row add up there. Entries at computed places would be written out for every r and
added one after the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic

from einfuse.ir import expr as ex
from einfuse.ir.expr import call
from einfuse.ir.nodes import AnyCascade, Expr
from einfuse.ir.rewrite import fresh


@dataclass(frozen=True, slots=True)
class Spread(Generic[AnyCascade]):
    """``cascade`` has all ranks of ``args``; the adjoint of the read, times ``places``, is that of a read at ``args``."""

    cascade: AnyCascade
    args: tuple[Expr, ...]
    places: tuple[Expr, ...]


def spread(cascade: AnyCascade, read: Expr, beside: set[str], taken: set[str]) -> Spread[AnyCascade]:
    """The read of an input with its features at plain coordinates, of ranks that are none of those ``beside`` it.

    That is where a coordinate depends on one rank at most (with two, there would be ones and zeros for every pair of them), and a row is
    read. A rank of features is made where none is free, under a name that is not ``taken``.
    """
    axes = next(t.axes for t in cascade.inputs if t.name == read.name)
    sequence = {r.name for r in cascade.ranks if r.is_sequence} - set(cascade.over)
    args, places = list(read.args), []
    for n, (e, axis) in enumerate(zip(read.args, axes, strict=True)):
        rows = sequence & set().union(*(ex.indices(a) for a in (*args[:n], *args[n + 1 :])))
        if e.op == "index" or not rows or len(ex.indices(e) - set(cascade.over)) > 1:
            continue
        sized = [r for r in cascade.ranks if r.kind == "feature" and ex.size(r.size) == axis]
        mine = {a.name for a in args if a.op == "index"}  # no two axes share a coordinate
        free = next((r.name for r in sized if r.name not in beside | mine), None)
        if free is None and sized:
            free = fresh(sized[0].name, taken)
            cascade = replace(cascade, ranks=(*cascade.ranks, replace(sized[0], name=free)))
        if free is not None:
            args[n] = ex.index(free)
            place = call("max", ex.const(0), call("min", e, call("-", axis, ex.const(1))))  # outside an axis its end is read
            places.append(call("select", call("==", args[n], place), ex.const(1.0), ex.const(0.0)))
    return Spread(cascade, tuple(args), tuple(places))
