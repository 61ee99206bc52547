"""Heads for positions: every device gets all positions of some heads, computes those as one device would, and gives the positions back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch

from einfuse.distributed import routes
from einfuse.distributed.exchange import once, tied
from einfuse.distributed.here import Axis, Here, Value, Values, axes_of, coordinates, device_of, only, tensors
from einfuse.distributed.inputs import replicated
from einfuse.distributed.routes import Route, Rows
from einfuse.distributed.steps import Inner, Move, Program
from einfuse.ir import Cascade, Expr, SpecError
from einfuse.ir import expr as ex
from einfuse.ir.passes import shard
from einfuse.ir.passes.shard import Local
from einfuse.ir.rewrite import map_expressions


def rank_of(c: Cascade) -> str:
    """The rank of heads. Raises SpecError where no statement may be computed head by head."""
    heads = [r for r in c.over if c.rank(r).kind == "head"]
    if not heads:
        raise SpecError(f"{c.name} has no ambient rank of heads to exchange for positions", c.loc)
    reasons = [shard.obstacle(c, r) for r in heads]
    for r, reason in zip(heads, reasons, strict=True):
        if reason is None:
            return r
    message, loc = reasons[0] or ("", None)
    raise SpecError(f"{c.name} cannot exchange heads for positions: {message}", loc)


def run(c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner) -> Program:
    """The outputs: of each its own positions; those without positions whole."""
    at, device = here.at[axis.name], device_of(inputs)
    me = at.rank
    local, mine, widths = dealt(c, axis, here, at.size)
    whole, waiting = yield from replicated(c, axis, inputs, shard.held(c, axis.ranks))
    own = {n: mine[width][me] for n, width in widths.items()}
    cut = dict(local.cut)
    kept = {n: x.index_select(cut[n], own[n].to(x.device)) if n in cut else x for n, x in whole.items()}
    along = inwards(c, axis, here, local, mine, widths)
    found = yield Move(axis.name, f"heads for positions of {c.name}", tensors(inputs), along)
    heads = mine[1]
    values: dict[str, Value] = {**inputs, **kept, **found, **coordinates(local, heads[me], here, device)}
    outs = yield from inner(local.cascade, only(local.cascade, values), here.sized(**{local.rows: len(heads[me])}), "")
    anchors = [*whole.values(), *found.values()]
    back = outwards(c, axis, here, local.rank, heads)
    made = yield Move(axis.name, f"positions for heads of {c.name}", outs, back, anchors)
    outs = {n: made[n] if _along(c, axis, n) is not None else once(c.name, me == 0, made[n]) for n in c.outs}
    return tied(c.name, outs, [*waiting, *found.values(), *made.values()])


def dealt(c: Cascade, axis: Axis, here: Here, size: int) -> tuple[Local, dict[int, list[Rows]], dict[str, int]]:
    """The cascade of some heads; which entries of an axis every device has, by the heads that share one; and that of every input."""
    rank = rank_of(c)
    number = here.extent(ex.size(c.rank(rank).size))
    shares = sorted({here.extent(b) for t in c.inputs for b in [_divisor(c, rank, t.axes)] if b is not None} - {1})
    widest = shares[-1] if shares else 1
    together = all(widest % s == 0 for s in shares) and number // widest >= size
    unit = widest if together else 1
    ends = [(number // unit) * n // size * unit for n in range(size + 1)]
    heads = [torch.arange(a, b) for a, b in itertools.pairwise(ends)]
    alone = c if together else here.memo(("alone", c.digest, rank), lambda: _alone(c, rank))
    given = {t.name: n for t in alone.inputs for n, a in enumerate(t.axes) if _is_along(alone, rank, a)}
    local = here.memo(("heads", c.digest, rank, together), lambda: shard.run(alone, rank, given=given, grouped=True))
    by = {n: here.extent(_divisor(c, rank, c.input(n).axes) or ex.ONE) for n, _ in local.cut}
    mine = {s: [h[::s] // s if together else h // s for h in heads] for s in {1, *by.values()}}
    return local, mine, by


def inwards(
    c: Cascade, axis: Axis, here: Here, local: Local, mine: dict[int, list[Rows]], widths: dict[str, int]
) -> dict[str, Route]:
    """The routes of inputs: all positions of some heads, or all there is of what has no heads."""
    out, cut = {}, dict(local.cut)
    for name, along in shard.held(c, axis.ranks).items():
        rows = here.rows(axis, c.input(name).given[0][along])
        crosses = name in cut
        out[name] = routes.crosswise(cut[name], along, mine[widths[name]], rows) if crosses else routes.everything(along, rows)
    return out


def outwards(c: Cascade, axis: Axis, here: Here, rank: str, heads: Sequence[Rows]) -> dict[str, Route]:
    """The routes of outputs: all heads of some positions, or all heads of what has no positions."""
    out = {}
    for name in c.outs:
        axes, along = axes_of(c, name), _along(c, axis, name)
        at = axes.index(rank)
        if along is None:
            out[name] = routes.everything(at, heads)
        else:
            out[name] = routes.crosswise(along, at, here.rows(axis, ex.size(c.rank(axes[along]).size)), heads)
    return out


def _along(c: Cascade, axis: Axis, name: str) -> int | None:
    return next((n for n, r in enumerate(axes_of(c, name)) if r in axis.ranks), None)


def _is_along(c: Cascade, rank: str, a: Expr) -> bool:
    size = ex.size(c.rank(rank).size)
    return a == size or (a.op == "//" and a.args[0] == size)


def _divisor(c: Cascade, rank: str, axes: Sequence[Expr]) -> Expr | None:
    """By what heads are divided along the axis of an input that goes along them."""
    found = next((a for a in axes if _is_along(c, rank, a)), None)
    return None if found is None else found.args[1] if found.op == "//" else ex.ONE


def _alone(c: Cascade, rank: str) -> Cascade:
    """With entries of their own for heads that share some."""
    size, inputs = ex.size(c.rank(rank).size), {t.name: t for t in c.inputs}

    def one(e: Expr) -> Expr | None:
        if e.op != "load" or e.name not in inputs:
            return None
        axes = inputs[e.name].axes
        return replace(
            e, args=tuple(_of_head(x, a, rank, size) or ex.substitute(x, one) for x, a in zip(e.args, axes, strict=True))
        )

    moved_ = map_expressions(c, lambda e: ex.substitute(e, one))
    tensors_ = (replace(t, axes=tuple(size if a.op == "//" and a.args[0] == size else a for a in t.axes)) for t in c.inputs)
    return replace(moved_, name=f"{c.name}_alone", inputs=tuple(tensors_))


def _of_head(index: Expr, axis: Expr, rank: str, size: Expr) -> Expr | None:
    shared_ = axis.op == index.op == "//" and axis.args[0] == size and axis.args[1] == index.args[1]
    return ex.index(rank) if shared_ and index.args[0] == ex.index(rank) else None
