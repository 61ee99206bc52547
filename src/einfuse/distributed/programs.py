"""The exchanges by name, which of them a cascade may take, and how axes of a mesh are handled one inside the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from einfuse.distributed import ahead, columns, heads, prefix, rows, rows_back, states
from einfuse.distributed.here import Axis, Here, Kind, Values
from einfuse.distributed.steps import Program
from einfuse.ir import Cascade, SpecError
from einfuse.ir.passes import shard

Exchange = Literal["columns", "ahead", "rows_back", "rows", "heads", "states", "prefix"]
EXCHANGES: tuple[Exchange, ...] = ("columns", "ahead", "rows_back", "rows", "heads", "states", "prefix")
_RUN = {
    "columns": columns.run,
    "ahead": ahead.run,
    "rows_back": rows_back.run,
    "rows": rows.run,
    "heads": heads.run,
    "states": states.run,
    "prefix": prefix.run,
}

Route = tuple[Axis, Exchange]


def run(c: Cascade, axes: Sequence[Route], here: Here, inputs: Values, kind: Kind = "") -> Program:
    """The program of a cascade on this device: by the exchange of the first axis, inside which the others are handled."""
    if not axes:
        return here.evaluate(c, inputs, kind)
    (axis, exchange), *rest = axes
    return (yield from _RUN[exchange](c, axis, here, inputs, lambda c, x, here, kind: run(c, rest, here, x, kind)))


def obstacle(c: Cascade, axis: Axis, exchange: Exchange) -> SpecError | None:
    """Why a cascade cannot be sharded by an exchange; None: it can."""
    try:
        match exchange:
            case "columns":
                shard.by_columns(c, axis.ranks)
            case "ahead":
                ahead.check(c, axis)
            case "rows_back":
                rows_back.check(c, axis)
            case "rows":
                rows.ranks_of(c, axis)
            case "heads":
                heads.rank_of(c)
                if set(axis.ranks) & set(c.over):
                    raise SpecError(f"{c.name}: heads are exchanged for positions, and the sharded ranks are ambient", c.loc)
            case "states":
                states.rank_of(c, axis)
            case "prefix":
                prefix.rank_of(c, axis)
    except SpecError as error:
        return error
    return None


def legal(c: Cascade, axes: Sequence[Axis], wanted: Exchange | None = None) -> list[dict[Exchange, SpecError | None]]:
    """For every axis, handled in that order, each exchange and why it cannot be taken: of axes of positions that which is ``wanted`` alone.
    Raises SpecError where none of an axis can.
    """
    out: list[dict[Exchange, SpecError | None]] = []
    for n, axis in enumerate(axes):
        found = {e: obstacle(c, axis, e) for e in (EXCHANGES if wanted is None or axis.ranks[0] in c.over else (wanted,))}
        out.append(found)
        if all(error is not None for error in found.values()):
            raise _refused(found)
        if n + 1 < len(axes):
            c = _inside(c, axis, found)
    return out


def _inside(c: Cascade, axis: Axis, found: Mapping[Exchange, SpecError | None]) -> Cascade:
    """What the axes inside see."""
    if (found["columns"] if "columns" in found else obstacle(c, axis, "columns")) is not None:
        taken = next(e for e, error in found.items() if error is None)
        raise SpecError(f"{c.name}: over `{axis.name}` it is sharded by {taken}, inside which no other axis is", c.loc)
    stages = shard.by_columns(c, axis.ranks)
    if len(stages) > 1 or stages[0].owner is None:
        raise SpecError(f"{c.name} takes {len(stages)} kernels, which are sharded over one axis of a mesh", c.loc)
    return shard.run(c, stages[0].owner, given=stages[0].held, grouped=stages[0].owner in c.over).cascade


def _refused(found: Mapping[Exchange, SpecError | None]) -> SpecError:
    """The reason of the columns, with the others as a hint."""
    first, *rest = [e for e in found.values() if e is not None]
    return SpecError(first.message, first.loc, "; ".join(dict.fromkeys(e.message for e in rest)))
