"""States of keys: rows are on all devices, keys on one each; what every device knows after its own goes through the derived merge."""

from __future__ import annotations

import torch

from einfuse.distributed import routes
from einfuse.distributed.exchange import once, tied
from einfuse.distributed.here import Axis, Here, Values, consecutive, device_of, only, size_of
from einfuse.distributed.inputs import arrived
from einfuse.distributed.steps import Inner, Move, Program
from einfuse.ir import Cascade, SpecError
from einfuse.ir.passes import shard, split


def rank_of(c: Cascade, axis: Axis) -> str:
    """The sharded rank, that of keys. Raises SpecError where the cascade takes more than one pass, or has rows along it."""
    if len(axis.ranks) != 1 or axis.ranks[0] in c.over:
        raise SpecError(f"{c.name}: states are exchanged where one rank of keys is sharded, and no rows are", c.loc)
    found = split.run(c)
    if found.rank != axis.ranks[0]:
        raise SpecError(f"{c.name} has states along `{found.rank}`, and `{axis.ranks[0]}` is sharded", c.loc)
    return found.rank


def run(c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner) -> Program:
    """The outputs, whole."""
    at = here.at[axis.name]
    rank, held = axis.ranks[0], shard.held(c, axis.ranks)
    rows = here.layouts[axis.name][size_of(c, rank)]
    listed, mine, device = not all(map(consecutive, rows)), rows[at.rank], device_of(inputs)
    local = here.memo(("local", c.digest, rank, listed), lambda: shard.run(c, rank, listed, held))
    found = here.memo(("split", c.digest, rank, listed), lambda: split.run(local.cascade))
    given = yield from arrived(c, axis, here, inputs, local, mine)
    values = given.values
    values[found.partial.inputs[-1].name] = torch.tensor([[0, len(mine)]], device=device)
    known = here.sized(**{local.rows: len(mine), split.PARTS: 1})
    states = yield from inner(found.partial, only(found.partial, values), known, "partial")
    side = dict.fromkeys(states, routes.stacked(at.size, len(c.over)))
    every = yield Move(axis.name, f"states of {c.name}", states, side, given.anchors)
    more = {found.held[n]: x for n, x in every.items()} | split.constants(found.sizes, known.sizes)
    merged = yield from inner(
        found.merged, only(found.merged, {**values, **more}), known.sized(**{split.PARTS: at.size}), "states"
    )
    return tied({n: once(at.rank == 0, merged[n]) for n in c.outs}, [*given.waiting, *every.values()])
