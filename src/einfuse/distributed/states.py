"""States of keys: rows are on all devices, keys on one each; what every device knows after its own goes through the derived merge."""

from __future__ import annotations

from collections.abc import Generator

import torch

from einfuse.distributed import routes
from einfuse.distributed.exchange import once, tied
from einfuse.distributed.here import Axis, Here, Values, consecutive, device_of, only, size_of
from einfuse.distributed.inputs import Arrived, arrived
from einfuse.distributed.steps import Inner, Move, Program, Step
from einfuse.ir import Cascade, SpecError
from einfuse.ir.passes import shard, split
from einfuse.ir.passes.split import Split

Made = dict[str, torch.Tensor]


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
    found, given, states = yield from partial(c, axis, axis.ranks[0], here, inputs, inner)
    side = dict.fromkeys(states, routes.stacked(at.size, len(c.over)))
    every = yield Move(axis.name, f"states of {c.name}", states, side, given.anchors)
    more = {found.held[n]: x for n, x in every.items()} | split.constants(found.sizes, here.sizes)
    whole = here.sized(**{split.PARTS: at.size})
    merged = yield from inner(found.merged, only(found.merged, {**given.values, **more}), whole, "states")
    return tied(c.name, {n: once(c.name, at.rank == 0, merged[n]) for n in c.outs}, [*given.waiting, *every.values()])


def partial(
    c: Cascade, axis: Axis, rank: str, here: Here, inputs: Values, inner: Inner
) -> Generator[Step, Made, tuple[Split, Arrived, Made]]:
    """The split of a cascade along its rank of keys, what this device has of the inputs, and the states after its keys, as one part."""
    rows, held = here.layouts[axis.name][size_of(c, rank)], shard.held(c, axis.ranks)
    listed, mine = not all(map(consecutive, rows)), rows[here.at[axis.name].rank]
    local = here.memo(("local", c.digest, axis, rank, listed), lambda: shard.run(c, rank, listed, held))
    found = here.memo(("split", c.digest, axis, rank, listed), lambda: split.run(local.cascade))
    given = yield from arrived(c, axis, here, inputs, local, mine)
    bounds = {found.partial.inputs[-1].name: torch.tensor([[0, len(mine)]], device=device_of(inputs))}
    known = here.sized(**{local.rows: len(mine), split.PARTS: 1})
    states = yield from inner(found.partial, only(found.partial, {**given.values, **bounds}), known, "partial")
    return found, given, states
