"""Rows do what they can before columns arrive: first their states after the columns of their own device, then after those of others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from einfuse.distributed import columns, routes
from einfuse.distributed.exchange import tied
from einfuse.distributed.here import Axis, Here, Value, Values, consecutive, coordinates, device_of, only, size_of, tensors
from einfuse.distributed.inputs import replicated
from einfuse.distributed.routes import Rows
from einfuse.distributed.rows import ranks_of
from einfuse.distributed.steps import Begin, Inner, Move, Program
from einfuse.ir import Cascade
from einfuse.ir import expr as ex
from einfuse.ir.passes import shard, split


def check(c: Cascade, axis: Axis) -> None:
    """Raises SpecError where a device cannot begin with its own columns: states have to be merged, so there is one pass."""
    ranks_of(c, axis)
    shard.by_columns(c, axis.ranks)


def run(c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner) -> Program:
    """The outputs: of each its own rows."""
    me, device, held = here.at[axis.name].rank, device_of(inputs), shard.held(c, axis.ranks)
    row, key = here.memo(("rows of", c.digest, axis), lambda: ranks_of(c, axis))
    rows, own = (here.layouts[axis.name][size_of(c, r)] for r in (row, key))
    listed = not all(map(consecutive, rows))
    by_row = here.memo(("ahead", c.digest, row, listed), lambda: shard.run(c, row, listed, held))
    local = here.memo(("ahead", c.digest, row, key, listed), lambda: shard.run(by_row.cascade, key, True, held))
    found = here.memo(("split", c.digest, row, key, listed), lambda: split.run(local.cascade))
    whole, waiting = yield from replicated(axis, inputs, held)
    cut = {n for n, _ in (*by_row.cut, *local.cut)}
    every = {n: routes.everything(a, here.rows(axis, c.input(n).given[0][a])) for n, a in held.items() if n not in cut}
    gathered = yield Move(axis.name, f"columns of {c.name}", tensors(inputs), every)
    values: dict[str, Value] = {**inputs, **whole, **gathered, **coordinates(by_row, rows[me], here, device)}
    others = _others(c, axis, here, values, own)
    along = {n: routes.columns(a, own, others) for n, a in local.cut}
    move = Move(axis.name, f"columns of {c.name}", tensors(inputs), along)
    yield Begin(move)
    sizes = here.sized(**{by_row.rows: len(rows[me])})

    def after(mine: Rows, more: Values) -> Program:
        known = {**values, **more, **coordinates(local, mine, sizes, device)}
        known[found.partial.inputs[-1].name] = torch.tensor([[0, len(mine)]], device=device)
        now = sizes.sized(**{local.rows: len(mine), split.PARTS: 1})
        return inner(found.partial, only(found.partial, known), now, "partial")

    first = yield from after(own[me], {})
    arrived = yield move
    second = yield from after(others[me], arrived)
    states = {found.held[n]: torch.cat([x, second[n]], len(c.over)) for n, x in first.items()}
    more = states | split.constants(found.sizes, sizes.sizes)
    made = yield from inner(found.merged, only(found.merged, {**values, **more}), sizes.sized(**{split.PARTS: 2}), "states")
    return tied({n: made[n] for n in c.outs}, [*waiting, *gathered.values(), *arrived.values()])


def _others(c: Cascade, axis: Axis, here: Here, values: Values, own: Sequence[Rows]) -> list[Rows]:
    """The columns of others that some row of every device reads."""
    (stage,) = columns.stages(c, axis, here)
    total = sum(map(len, own))
    every = [torch.arange(total)] * len(own)
    wanted = columns.wanted(stage, axis, here, values) if stage.columns is not None and stage.need != ex.TRUE else every
    return [w[~torch.isin(w, mine)] for w, mine in zip(wanted, own, strict=True)]
