"""Rows go to the keys: keys stay, every device finds what the rows of all know after its keys, and they are merged where the rows are."""

from __future__ import annotations

import torch

from einfuse.distributed import routes
from einfuse.distributed.exchange import tied
from einfuse.distributed.here import Axis, Here, Values, axes_of, consecutive, coordinates, device_of, only, size_of
from einfuse.distributed.states import partial
from einfuse.distributed.steps import Inner, Move, Program
from einfuse.ir import Cascade, SpecError
from einfuse.ir.passes import shard, split


def ranks_of(c: Cascade, axis: Axis) -> tuple[str, str]:
    """The ranks of rows and of keys. Raises SpecError where the cascade takes more than one pass, or has no rows of its own."""
    if len(axis.ranks) != 2 or set(axis.ranks) & set(c.over):
        raise SpecError(f"{c.name}: rows go to keys where a rank of each is sharded", c.loc)
    found = split.run(c)
    if found.rank not in axis.ranks:
        raise SpecError(f"{c.name} has states along `{found.rank}`, and {' and '.join(axis.ranks)} are sharded", c.loc)
    row = next(r for r in axis.ranks if r != found.rank)
    reason = shard.obstacle(found.merged, row)
    if reason is not None:
        raise SpecError(f"{c.name} cannot send rows of `{row}` to keys: {reason[0]}", reason[1])
    return row, found.rank


def run(c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner) -> Program:
    """The outputs: of each its own rows."""
    at, device = here.at[axis.name], device_of(inputs)
    row, key = here.memo(("rows of", c.digest, axis), lambda: ranks_of(c, axis))
    every = here.layouts[axis.name][size_of(c, row)]
    found, given, states = yield from partial(c, axis, key, here, inputs, inner)
    axes = {n: axes_of(found.partial, n) for n in states}
    part, side = len(c.over), [torch.tensor([s]) for s in range(at.size)]
    whole = routes.stacked(at.size, part)
    back = {n: routes.crosswise(a.index(row), part, every, side) if row in a else whole for n, a in axes.items()}
    known = yield Move(axis.name, f"states of {c.name}", states, back, given.anchors)
    listed, mine = not all(map(consecutive, every)), every[at.rank]
    held = shard.held(c, axis.ranks) | {found.held[n]: a.index(row) for n, a in axes.items() if row in a}
    local = here.memo(("merged", found.merged.digest, row, listed), lambda: shard.run(found.merged, row, listed, held))
    own = {n: inputs[n] for n, _ in local.cut if n in inputs}
    more = (
        {found.held[n]: x for n, x in known.items()}
        | split.constants(found.sizes, here.sizes)
        | coordinates(local, mine, here, device)
    )
    sizes = here.sized(**{local.rows: len(mine), split.PARTS: at.size})
    merged = yield from inner(local.cascade, only(local.cascade, {**given.values, **own, **more}), sizes, "states")
    return tied(c.name, {n: merged[n] for n in c.outs}, [*given.waiting, *known.values()])
