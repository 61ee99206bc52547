"""Rows stay, and get the columns that they read: a gather, or only what some row of the device reads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from einfuse.distributed import routes
from einfuse.distributed.exchange import tied
from einfuse.distributed.here import (
    Axis,
    Here,
    Kind,
    T,
    Value,
    Values,
    consecutive,
    coordinates,
    device_of,
    only,
    size_of,
    tensors,
)
from einfuse.distributed.inputs import Tensors, replicated
from einfuse.distributed.layout import cost
from einfuse.distributed.routes import Rows
from einfuse.distributed.steps import Inner, Move, Program, Step
from einfuse.ir import Cascade, Scalar, SpecError, classify
from einfuse.ir import expr as ex
from einfuse.ir.passes import shard
from einfuse.ir.passes.shard import Local, Stage

TILE = 128
TILES = 256
"""Tiles of a mask that are looked at along each side, if they need not be larger."""


def stages(c: Cascade, axis: Axis, here: Here) -> tuple[Stage, ...]:
    return here.memo(("stages", c.digest, axis), lambda: shard.by_columns(c, axis.ranks))


def run(c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner) -> Program:
    """The outputs: of each its own rows."""
    outs, _ = yield from keeping(c, axis, here, inputs, inner, "", {})
    return outs


def keeping(
    c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner, kind: Kind, known: Known
) -> Generator[Step, Tensors, tuple[Tensors, Known]]:
    """The outputs of `run`, whose stages are run as ``kind``, and what is ``known`` after it; what is known before does not arrive again."""
    me = here.at[axis.name].rank
    whole, waiting = yield from replicated(c, axis, inputs, shard.held(c, axis.ranks))
    values: dict[str, Value] = {**inputs, **whole}
    for stage in stages(c, axis, here):
        local, rows, more = placed(stage, axis, here, values)
        cut = local[-1].cascade if local else stage.cascade
        needs = needed(stage, axis, here, local, rows)
        here_now = {n: known[n][1] for n, x in needs.items() if n in known and _same(known[n][0], x.rows)}
        along = {n: routes.columns(*x) for n, x in needs.items() if n not in here_now}
        moved = yield Move(axis.name, f"columns of {stage.cascade.name}", tensors(values), along)
        known = {**known, **{n: (needs[n].rows, x) for n, x in moved.items()}}
        found = {**here_now, **moved}
        waiting += found.values()
        sizes = {x.rows: len(rows[x.rank][me]) for x in local}
        values |= yield from inner(cut, {**only(cut, {**values, **found}), **more}, here.sized(**sizes), kind)
    return tied(c.name, {n: tensors(values)[n] for n in c.outs}, waiting), known


def placed(
    stage: Stage, axis: Axis, here: Here, values: Values
) -> tuple[list[Local], dict[str, Sequence[Rows]], dict[str, Value]]:
    """The cascade of a stage in the coordinates of a device, one rank after the other; the rows of those ranks; what it takes besides."""
    if stage.owner is None:
        return [], {}, {}
    me = here.at[axis.name].rank
    rows = {stage.owner: here.layouts[axis.name][size_of(stage.cascade, stage.owner)]}
    if stage.columns is not None and stage.need != ex.TRUE:
        rows[stage.columns] = wanted(stage, axis, here, values)
    out: list[Local] = []
    more: dict[str, Value] = {}
    c = stage.cascade
    for rank, own in rows.items():
        listed = not all(map(consecutive, own))
        local = _local(c, rank, listed, stage.held, here)
        out.append(local)
        more |= coordinates(local, own[me], here, device_of(values))
        c = local.cascade
    return out, rows, more


def _local(c: Cascade, rank: str, listed: bool, held: Mapping[str, int], here: Here) -> Local:
    key = ("local", c.digest, rank, listed, tuple(held.items()))
    return here.memo(key, lambda: shard.run(c, rank, listed, held, grouped=rank in c.over))


class Needed(NamedTuple):
    """Which rows along an ``axis`` of an input every device has, and which it needs."""

    axis: int
    held: Sequence[Rows]
    rows: Sequence[Rows]


Known = Mapping[str, tuple[Sequence[Rows], torch.Tensor]]
"""What has arrived before, by the names of inputs: which rows every device got, and those of this one."""


def needed(
    stage: Stage, axis: Axis, here: Here, local: Sequence[Local], rows: Mapping[str, Sequence[Rows]]
) -> dict[str, Needed]:
    """Of every input that a device does not have as it needs it."""
    cut = {n: x.rank for x in local for n, _ in x.cut}
    out = {}
    for name, along in stage.held.items():
        if name in cut and cut[name] == stage.owner:
            continue
        mine = here.rows(axis, stage.cascade.input(name).given[0][along])
        whole = torch.arange(sum(map(len, mine)))
        out[name] = Needed(along, mine, rows[cut[name]] if name in cut else [whole] * len(mine))
    return out


def _same(rows: Sequence[Rows], others: Sequence[Rows]) -> bool:
    return all(map(torch.equal, rows, others))


def wanted(stage: Stage, axis: Axis, here: Here, values: Values) -> list[Rows]:
    """The columns that some row of every device reads, as far as the conditions tell by tiles. The same on all devices."""
    assert stage.need is not None, "columns may be left out"
    assert stage.owner is not None, "rows are owned"
    assert stage.columns is not None, "columns may be left out"
    c = stage.cascade
    numbers, tables = asked(stage, values)
    held = here.layouts[axis.name][size_of(c, stage.owner)]
    return of_call(("wanted",), c, here, numbers, tables, held, lambda: _wanted(stage, here, numbers, tables, held))


def of_call(
    kind: tuple[object, ...],
    c: Cascade,
    here: Here,
    numbers: Mapping[str, Scalar],
    tables: Mapping[str, torch.Tensor],
    rows: Sequence[Rows],
    make: Callable[[], T],
) -> T:
    """What is made of tables, numbers, sizes and who holds which rows, once for the same ones."""
    seen = tuple((n, id(x), x._version) for n, x in tables.items())
    key = (kind, c.digest, seen, tuple(numbers.items()), tuple(sorted(here.sizes.items())), tuple(map(id, rows)))
    return here.memo(key, lambda: (make(), tables, rows))[0]  # tables and rows too: ids are those of living ones


def asked(stage: Stage, values: Values) -> tuple[dict[str, Scalar], dict[str, torch.Tensor]]:
    """The numbers and the tables that say which columns rows read: those that all devices have."""
    read = [t for t in stage.cascade.inputs if t.name in ex.reads(stage.need) and t.name not in stage.held]
    given = {t.name: values.get(t.name, t.default) for t in read if t.param}
    tables = {t.name: tensors(values)[t.name] for t in read if t.name in values and not t.param and t.listed is None}
    return {n: x for n, x in given.items() if x is not None and not isinstance(x, torch.Tensor)}, tables


def _wanted(
    stage: Stage, here: Here, numbers: Mapping[str, Scalar], tables: Mapping[str, torch.Tensor], held: Sequence[Rows]
) -> list[Rows]:
    live, tile = tiles(stage, here.sizes, numbers, tables)
    m = int(here.sizes[size_of(stage.cascade, str(stage.columns))])
    out = []
    for own in held:
        chosen = np.nonzero(live[np.unique((own // tile).numpy())].any(0))[0]
        points = (chosen[:, None] * tile + np.arange(tile)).reshape(-1)
        out.append(torch.from_numpy(points[points < m]))
    return out


def tiles(
    stage: Stage, sizes: Mapping[str, int], numbers: Mapping[str, Scalar], tables: Mapping[str, torch.Tensor]
) -> tuple[npt.NDArray[np.bool_], int]:
    """Which tiles of rows read something of which tiles of columns, for some point of the ambient ranks; and how large they are."""
    c = stage.cascade
    rows, columns = (c.rank(str(r)) for r in (stage.owner, stage.columns))
    n, m = (int(sizes[str(r.size)]) for r in (rows, columns))
    tile = min(TILE, max(-(-n // TILES), -(-m // TILES), 1))
    if n == 0 or m == 0:
        return np.zeros((-(-n // tile), -(-m // tile)), np.bool_), tile
    ambient = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in c.ranks if r.name in c.over}
    arrays = {k: (x.double() if x.is_floating_point() else x).detach().cpu().numpy() for k, x in tables.items()}
    found = classify(stage.need, (rows.name, n, tile), (columns.name, m, tile), sizes, numbers, arrays, ambient)
    return (found.kind != 0).reshape(-1, *found.kind.shape[-2:]).any(0), tile


def pairs(c: Cascade, axis: Axis, here: Here, values: Values, by_rows: bool) -> tuple[int, ...]:
    """The pairs of the tiles that rows of every part visit, or that visit its columns; none where columns cannot be told apart."""
    stage = next((s for s in _stages(c, axis) if s.columns is not None), None)
    if stage is None:
        return ()
    live, tile = tiles(stage, here.sizes, *asked(stage, values))
    rank = stage.owner if by_rows else stage.columns
    return cost(here.layouts[axis.name][size_of(stage.cascade, str(rank))], live if by_rows else live.T, tile).pairs


def visited(c: Cascade, axis: Axis, total: int, given: Values) -> tuple[npt.NDArray[np.bool_], int]:
    """`tiles` of a sequence of so many positions, before there is any tensor but the tables that masks read; all where columns stay whole."""
    tile = min(TILE, max(-(-total // TILES), 1))
    stage = next((s for s in _stages(c, axis) if s.columns is not None), None)
    count = -(-total // tile)
    if stage is None or stage.need == ex.TRUE:
        return np.ones((count, count), np.bool_), tile
    sizes = {
        a.name: n
        for t in c.inputs
        if t.name in given
        for a, n in zip(t.given[0], _shape(given[t.name]), strict=False)
        if a.op == "size"
    }
    sizes = {str(r.size): 1 for r in c.ranks} | sizes | {size_of(c, r): total for r in axis.ranks}
    numbers, tables = asked(stage, given)
    missing = [t.name for t in c.inputs if t.name in ex.reads(stage.need) - {*numbers, *tables, *stage.held}]
    if missing:
        raise TypeError(f"{c.name}: which columns rows read depends on {missing[0]}, which a layout has to be given")
    return tiles(stage, sizes, numbers, tables)


def _stages(c: Cascade, axis: Axis) -> tuple[Stage, ...]:
    try:
        return shard.by_columns(c, axis.ranks)
    except SpecError:
        return ()


def _shape(x: Value) -> tuple[int, ...]:
    return tuple(x.shape) if isinstance(x, torch.Tensor) else ()
