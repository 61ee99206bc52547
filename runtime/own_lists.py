"""Rows that go through their own lists, heads with one list as one tile (`ir.passes.own_lists`).

list  ->  [own lists]  ->  blocks in ascending order  ->  [own]  ->  o
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from einfuse.ir.expr import size
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.nodes import Place
from einfuse.ir.passes import own_lists
from einfuse.ir.passes.through import Listed
from einfuse.runtime.binding import evaluate, extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Host, Node, Tensors, room
from einfuse.runtime.lists import Lists, ascending, entries
from einfuse.runtime.outputs import Output

if TYPE_CHECKING:
    from einfuse.runtime.backends import Backend
    from einfuse.runtime.program import Program

FEWEST = 16
"""Heads with one list from which on they are worth a product of matrices: the rows of a tile of the smallest one."""


@dataclass(frozen=True, slots=True)
class Tile:
    """How a cascade reads lists, the ambient rank ``heads`` whose points are the rows of a tile, and what else a call has then."""

    found: Listed
    heads: str
    given: Given
    places: tuple[Place, ...] = ()


def tile(found: Listed, given: Given) -> Tile | None:
    """The largest rank whose points share lists and columns; None where it is too few."""
    if found.blocked != found.columns:
        return None
    extents = {r: extent_of(found.cascade, r, given.sizes) for r in own_lists.shared(found)}
    most = max(extents, key=lambda r: extents[r], default=None)
    if most is not None:
        return Tile(found, most, given) if extents[most] >= FEWEST else None
    made = own_lists.grouped(found)
    if made is None:
        return None
    heads, group = (int(evaluate(e, given.sizes)) for e in (size(made.heads.size), made.group))
    if group < FEWEST or heads % group:
        return None
    return Tile(made.found, made.of, given.more(sizes={made.groups: heads // group}), made.places)


def by_own(table: str, tile: Tile, program: Program, backend: Backend, outs: Mapping[str, Output]) -> Iterator[Node]:
    """The launch of a cascade over its rows, each with its own list in place of a ``table``."""
    found, given = tile.found, tile.given
    lists = Lists.of(found, given, table, without=tile.heads)
    made = own_lists.run(found, tile.heads, lists.slots, lists.short, backend.dear_masks, tile.places)
    shape = (*lists.over.values(), lists.rows)
    c, width = found.cascade, found.width
    columns = extent_of(c, found.columns, given.sizes)
    ranks = (*lists.over, lists.lister)
    ends = evaluate_indices(c, made.bounds, ranks, dict(given.numbers), given.sizes, None, given.device)
    bounds = [x.expand(shape).reshape(-1, lists.rows, 1).clamp(0, columns) for x in ends]

    def order(tensors: Tensors, call: Given) -> None:
        listed = entries(lists.flat(tensors), lists.index, lists.span)
        if bounds:
            alive = ((listed + 1) * width > bounds[0]) & (listed * width < bounds[3])
            listed = torch.where(alive, listed, lists.span)
        listed = ascending(listed)  # what stood twice, or names no column that is alive, goes to the end
        known = listed < lists.span
        values = {made.listed: torch.where(known, listed, 0), made.length: known.sum(-1)}
        if made.whole:
            first, last = (listed * width < bounds[1]).sum(-1), ((listed + 1) * width <= bounds[2]).sum(-1)
            values |= dict(zip(made.whole, (first, torch.maximum(first, last)), strict=True))
        tensors |= {n: x.int().view(*shape, *x.shape[2:]) for n, x in values.items()}

    tables = (made.length, *made.whole)
    yield Host("own lists", (table,), (made.listed, *tables), order)
    shapes = dict.fromkeys(tables, shape) | {made.listed: (*shape, lists.slots)}
    known = given.more({n: torch.empty(s, dtype=torch.int32, device="meta") for n, s in shapes.items()})
    yield room(outs)
    yield program.kernel(made.cascade, known, backend, outs, placed=True)
