"""Columns come for a forward, and rows go to columns for its backward: each with its gradients and statistics, to whoever has columns it read.

The derived backward is a few cascades, of which each is sharded by the exchange of columns. That with the gradients of keys has these for
rows and gets queries in the place of columns, so a device finds the whole gradients of its own keys and nothing is added up between devices.
The columns that came for the forward are kept for the gradients of rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from einfuse.distributed import columns
from einfuse.distributed.exchange import tied
from einfuse.distributed.here import Axis, Here, Values, has_features, only, size_of, tensors
from einfuse.distributed.inputs import replicated
from einfuse.distributed.steps import Inner, Program, Turn
from einfuse.ir import Cascade, Flat, SpecError
from einfuse.ir import expr as ex
from einfuse.ir.passes import choose, shard, stages
from einfuse.ir.passes.backward import Gradient, adjoint
from einfuse.runtime import binding
from einfuse.runtime import program as programs
from einfuse.runtime.given import Given
from einfuse.runtime.scatter import accumulate, contracted


def check(c: Cascade, axis: Axis) -> None:
    """Raises SpecError where a backward is more than a few cascades of rows and columns, or a device would not have its gradients whole."""
    if axis.ranks[0] in c.over or not isinstance(c, Flat) or choose.run(c) is not None:
        raise SpecError(f"{c.name}: rows go back where pairs of positions are sharded, and nothing is scanned or chosen", c.loc)
    shard.by_columns(c, axis.ranks)
    if len(stages.run(c)) > 1:
        raise SpecError(f"{c.name} takes several kernels, one after the other, and rows go back of one", c.loc)
    floats = tuple(t.name for t in c.inputs if t.dtype == "float" and not t.param)
    for cascade, gradients in programs.Program(c).backward_of(floats).cascades:
        for stage in shard.by_columns(cascade, _within(cascade, axis).ranks):
            for g in gradients:
                if stage.owner is not None and not _local(g, axis, stage.owner, shard.held(c, axis.ranks)):
                    raise SpecError(f"{c.name}: the gradient of {g.input} is read at other points than a device has", c.loc)


def _local(g: Gradient, axis: Axis, owner: str, held: Mapping[str, int]) -> bool:
    """Whether a gradient lies where its device has the input, or counts for an input that all devices have."""
    at = held.get(g.input)
    rest = [e for n, e in enumerate(g.index) if n != at]
    return (at is None or g.index[at] == ex.index(owner)) and not any(ex.indices(e) & {*axis.ranks} for e in rest)


def run(c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner) -> Program:
    """The outputs: of each its own rows."""
    whole, waiting = yield from replicated(c, axis, inputs, shard.held(c, axis.ranks))
    known = tensors({**inputs, **whole})
    wanted = tuple(n for n, x in known.items() if here.training and x.requires_grad)
    program = here.memo(("program", c.digest), lambda: programs.Program(c))
    given: Values = {**inputs, **{n: x.detach() for n, x in known.items()}}
    made, arrived = yield from columns.keeping(program.saving(wanted), axis, here, given, inner, "partial", {})
    numbers = {n: x for n, x in inputs.items() if not isinstance(x, torch.Tensor)}
    kept = {**tensors(given), **made, **{_arrived(n): x for n, (_, x) in arrived.items()}}
    rows = {n: r for n, (r, _) in arrived.items()}

    def backward(kept: Mapping[str, torch.Tensor], directions: Mapping[str, torch.Tensor]) -> Program:
        narrow = binding.precision_of(c, {n: kept[n] for n in known})
        narrowed = {adjoint(n): g.to(narrow) if has_features(c, n) else g for n, g in directions.items()}
        values: Values = {**given, **kept, **narrowed}
        mine = {n: kept[n] for n in known}
        sums: dict[str, torch.Tensor] = {}
        there: columns.Known = {n: (r, kept[_arrived(n)]) for n, r in rows.items()}
        for cascade, gradients in program.backward_of(wanted).cascades:
            outs, there = yield from columns.keeping(
                cascade, _within(cascade, axis), here, only(cascade, values), inner, "states", there
            )
            values = {**values, **outs}
            sizes = _sizes(cascade, axis, here)
            for g in gradients:
                accumulate(sums, cascade, *contracted(g, outs), Given(mine, numbers, sizes))
        return {n: sums[n].to(kept[n].dtype) if n in sums else torch.zeros_like(kept[n]) for n in wanted}

    asked = {n: known[n] for n in wanted}
    outs = yield Turn(axis.name, c.name, asked, {n: made[n] for n in c.outs}, kept, backward)
    return tied(c.name, outs, waiting)


def _arrived(name: str) -> str:
    """What the columns of an input that came for the forward are kept as."""
    return f"{name} of others"


def _within(c: Cascade, axis: Axis) -> Axis:
    """The axis with those of its ranks that a cascade has."""
    return Axis(axis.name, tuple(r for r in axis.ranks if any(r == x.name for x in c.ranks)))


def _sizes(c: Cascade, axis: Axis, here: Here) -> dict[str, int]:
    """Sizes, of sharded ranks what this device has."""
    rows = here.layouts[axis.name]
    me = here.at[axis.name].rank
    names = (size_of(c, r.name) for r in c.ranks if r.name in axis.ranks)
    return {**here.sizes, **{n: len(rows[n][me]) for n in names}}
