"""Rows do what they can before columns arrive: first their states after the columns of their own device, then after those of others.

All columns are on their way before a kernel begins, in as many pieces as `schedule` finds best. A backward is the same in reverse: the
gradients of a piece leave when its kernel is done, and are waited for after the last one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from einfuse.distributed import columns, routes, schedule
from einfuse.distributed.exchange import tied
from einfuse.distributed.here import (
    Axis,
    Here,
    Value,
    Values,
    axes_of,
    consecutive,
    coordinates,
    device_of,
    only,
    size_of,
    tensors,
)
from einfuse.distributed.inputs import replicated
from einfuse.distributed.routes import Rows
from einfuse.distributed.rows import ranks_of
from einfuse.distributed.schedule import Times
from einfuse.distributed.steps import Begin, Inner, Move, Program
from einfuse.ir import Cascade
from einfuse.ir import expr as ex
from einfuse.ir.passes import shard, split
from einfuse.ir.passes.shard import Local
from einfuse.ir.passes.split import Split


def check(c: Cascade, axis: Axis) -> None:
    """Raises SpecError where a device cannot begin with its own columns: states have to be merged, so there is one pass."""
    ranks_of(c, axis)
    shard.by_columns(c, axis.ranks)


def run(c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner) -> Program:
    """The outputs: of each its own rows."""
    me, device, held = here.at[axis.name].rank, device_of(inputs), shard.held(c, axis.ranks)
    by_row, local, found = _derived(c, axis, here)
    rows, own = _placed(c, axis, here)
    whole, waiting = yield from replicated(c, axis, inputs, held)
    cut = {n for n, _ in (*by_row.cut, *local.cut)}
    every = {n: routes.everything(a, here.rows(axis, c.input(n).given[0][a])) for n, a in held.items() if n not in cut}
    gathered = yield Move(axis.name, f"columns of {c.name}", tensors(inputs), every)
    values: dict[str, Value] = {**inputs, **whole, **gathered, **coordinates(by_row, rows[me], here, device)}
    others, times = planned(c, axis, here, values)
    pieces = schedule.in_turn(own, others, times.best)
    moves = [
        Move(axis.name, f"columns of {c.name}", tensors(inputs), {n: routes.columns(a, own, piece) for n, a in local.cut})
        for piece in zip(*pieces, strict=True)
    ]
    for move in moves:
        yield Begin(move)
    sizes = here.sized(**{by_row.rows: len(rows[me])})

    def after(mine: Rows, more: Values) -> Program:
        known = {**values, **more, **coordinates(local, mine, sizes, device)}
        known[found.partial.inputs[-1].name] = torch.tensor([[0, len(mine)]], device=device)
        now = sizes.sized(**{local.rows: len(mine), split.PARTS: 1})
        return inner(found.partial, only(found.partial, known), now, "partial")

    states = [(yield from after(own[me], {}))]
    waiting += gathered.values()
    for mine, move in zip(pieces[me], moves, strict=True):
        arrived = yield move
        states.append((yield from after(mine, arrived)))
        waiting += arrived.values()
    known = {found.held[n]: torch.cat([x[n] for x in states], len(c.over)) for n in states[0]}
    more = known | split.constants(found.sizes, sizes.sizes)
    last = sizes.sized(**{split.PARTS: len(states)})
    made = yield from inner(found.merged, only(found.merged, {**values, **more}), last, "states")
    return tied(c.name, {n: made[n] for n in c.outs}, waiting)


def planned(c: Cascade, axis: Axis, here: Here, values: Values) -> tuple[list[Rows], Times]:
    """The columns of others that every device needs, and how long a forward takes with these all at once and in pieces. The same everywhere."""
    (stage,) = columns.stages(c, axis, here)
    rows, own = _placed(c, axis, here)
    told = stage.columns is not None and stage.need != ex.TRUE
    numbers, tables = columns.asked(stage, values) if told else ({}, {})
    every = [torch.arange(sum(map(len, own)))] * len(own)

    def make() -> tuple[list[Rows], Times]:
        live, tile = np.ones((1, 1), np.bool_), max(sum(map(len, (*rows, *own))), 1)
        if told:
            live, tile = columns.tiles(stage, here.sizes, numbers, tables)
        wanted = columns.wanted(stage, axis, here, values) if told else every
        others = [w[~torch.isin(w, mine)] for w, mine in zip(wanted, own, strict=True)]
        pair, column, state = _seconds(c, axis, here, values)
        mine, theirs = ([pair * n for n in schedule.pairs(live, tile, rows, x)] for x in (own, others))
        states = [here.rates.call + state * len(r) for r in rows]
        return others, schedule.times([column * len(w) for w in others], mine, theirs, states)

    kind = ("ahead", here.rates, *((x.dtype, x.shape) for x in tensors(values).values()))
    return columns.of_call(kind, c, here, numbers, tables, [*rows, *own], make)


def _seconds(c: Cascade, axis: Axis, here: Here, values: Values) -> tuple[float, float, float]:
    """Seconds that a pair takes, with all points of the ambient ranks, a column to arrive, and a row's states to be kept and merged."""
    by_row, local, found = _derived(c, axis, here)
    known, partial = tensors(values), found.partial

    def extent(rank: str) -> int:
        size = partial.rank(rank).size
        at = next((a for a, sizes in here.layouts.items() if a != axis.name and size in sizes), None)
        return here.extent(ex.size(size)) if at is None else len(here.layouts[at][str(size)][here.at[at].rank])

    points = math.prod(map(extent, c.over))
    wide = any(x.dtype == here.wide for n, x in known.items() if n in dict(local.cut))
    products = here.rates.wide_products if wide else here.rates.products
    column = sum(known[n].element_size() * math.prod([*known[n].shape[:a], *known[n].shape[a + 1 :]]) for n, a in local.cut)
    state = sum(
        math.prod(extent(r) for r in axes_of(partial, n) if r not in (*partial.over, by_row.rank)) for n in partial.outs
    )
    return (
        points * schedule.operations(c, by_row.rank, local.rank, extent) / products,
        column / here.rates.link,
        points * state * 2 * here.wide.itemsize / here.rates.memory,
    )


def _placed(c: Cascade, axis: Axis, here: Here) -> tuple[Sequence[Rows], Sequence[Rows]]:
    """The rows and the columns of every device."""
    row, key = here.memo(("rows of", c.digest, axis), lambda: ranks_of(c, axis))
    rows, own = (here.layouts[axis.name][size_of(c, r)] for r in (row, key))
    return rows, own


def _derived(c: Cascade, axis: Axis, here: Here) -> tuple[Local, Local, Split]:
    """The cascade of some rows, of those after some columns, and what it is in parts."""
    held = shard.held(c, axis.ranks)
    row, key = here.memo(("rows of", c.digest, axis), lambda: ranks_of(c, axis))
    listed = not all(map(consecutive, _placed(c, axis, here)[0]))
    by_row = here.memo(("ahead", c.digest, row, listed), lambda: shard.run(c, row, listed, held))
    local = here.memo(("ahead", c.digest, row, key, listed), lambda: shard.run(by_row.cascade, key, True, held))
    return by_row, local, here.memo(("split", c.digest, row, key, listed), lambda: split.run(local.cascade))
