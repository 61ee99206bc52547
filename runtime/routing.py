"""Rows that lists route to some points of an ambient rank (`ir.passes.routed`): heads that a row did not choose are not computed for it.

list  ->  [rows by routes]     ->  h_at, i_at           ->  [routed]    ->  states of rows  ->  [finalise]  ->  o
list  ->  [columns by routes]  ->  columns of each head ->  [gathered]  ->  d_k, d_v
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade
from einfuse.ir.expr import size
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.passes import routed, split
from einfuse.ir.ranking import members
from einfuse.runtime import cache
from einfuse.runtime.binding import evaluate, extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Host, Node, Tensors
from einfuse.runtime.lists import TILE, Sort, by_block
from einfuse.runtime.outputs import Output, accumulation

if TYPE_CHECKING:
    from einfuse.runtime.backends import Backend
    from einfuse.runtime.program import Program

Made = tuple[routed.Groups, "Program", "Program"]


def by_groups(
    table: str, found: routed.Routed, made: Made, given: Given, backend: Backend, outs: Mapping[str, Output]
) -> Iterator[Node]:
    """The launches of a cascade over groups of the rows that the lists name in place of its ``table``."""
    groups, first, second = made
    lists = _Lists.of(table, found, given, backend)
    over, rows, span = lists.over, lists.length, lists.span
    lanes, count = len(lists.index), -(-rows * lists.slots // TILE) + span

    def route(tensors: Tensors, call: Given) -> None:
        at, start, _ = lists.sorted(tensors, TILE, count * TILE)
        places = torch.arange(0, count * TILE, TILE, dtype=torch.int32, device=at.device).expand(lanes, -1)
        point = torch.searchsorted(start.contiguous(), places.contiguous(), right=True, out_int32=True) - 1
        tensors[groups.at[found.chosen]] = point
        tensors[groups.at[found.rows]] = torch.where(at < 0, rows, at).view(lanes, count, TILE)
        lane = torch.arange(lanes, dtype=torch.int32, device=at.device)
        for r, extent in reversed(list(over.items())):
            tensors[groups.at[r]], lane = lane % extent, lane // extent

    yield Host("rows by routes", (table,), tuple(groups.at.values()), route)
    sizes = {**given.sizes, groups.lanes: lanes, groups.groups: count, groups.room: rows + 1}
    wide = accumulation(given.tensors.values())
    shapes = {p.name: tuple(int(evaluate(a, sizes)) for a in p.axes) for p in groups.cascade.places}
    states = {y: f"state {y}" for y in shapes}

    def begin(tensors: Tensors, call: Given) -> None:
        device = tensors[table].device
        tensors |= {states[y]: torch.full(x, groups.start[y], dtype=wide, device=device) for y, x in shapes.items()}

    yield Host("states of rows", (table,), tuple(states.values()), begin)
    tables: dict[str, tuple[int, ...]] = {groups.at[r]: (lanes,) for r in over}
    tables |= {groups.at[found.chosen]: (lanes, count), groups.at[found.rows]: (lanes, count, TILE)}
    known = given.more({n: torch.empty(s, dtype=torch.int32, device="meta") for n, s in tables.items()}, sizes)
    yield first.kernel(groups.cascade, known, backend, {y: Output(s, wide) for y, s in shapes.items()}, states, placed=True)
    axes = {states[p.name]: p.axes.index(size(groups.room)) for p in groups.cascade.places}
    yield of_rows(axes, rows)
    held = {
        groups.held[y]: torch.empty(s, dtype=wide, device="meta").narrow(axes[states[y]], 0, rows) for y, s in shapes.items()
    }
    names = {groups.held[y]: f"{n} of rows" for y, n in states.items()}
    if any(t.name == table for t in groups.finalise.inputs):  # a condition of an output, too
        names[table] = f"table of {table}"
        held[table] = described_table(given.tensors[table], span)
        yield tables_of({table: names[table]}, {table: span})
    finishing = replace(given.more(held), numbers={**given.numbers, **split.constants(groups.sizes, given.sizes)})
    yield second.kernel(groups.finalise, finishing, backend, outs, names)


def by_columns(
    table: str, found: routed.Routed, program: Program, given: Given, backend: Backend, outs: Mapping[str, Output]
) -> Iterator[Node]:
    """The launch of a cascade over the columns that the lists name in place of its ``table``."""
    made, lists = routed.gathered(found), _Lists.of(table, found, given, backend)
    pairs = lists.length * lists.slots
    outer = tuple(lists.over.values())
    shapes = {made.first: (*outer, lists.span), made.count: (*outer, lists.span), made.listed: (*outer, pairs)}

    def route(tensors: Tensors, call: Given) -> None:
        listed, start, count = lists.sorted(tensors, 1, pairs)
        tensors |= {n: x.view(shapes[n]) for n, x in ((made.listed, listed), (made.first, start), (made.count, count))}

    yield Host("columns by routes", (table,), tuple(shapes), route)
    known = given.more({n: torch.empty(s, dtype=torch.int32, device="meta") for n, s in shapes.items()}, {made.pairs: pairs})
    yield program.kernel(made.cascade, known, backend, outs)


def by_table(
    table: str, cascade: Cascade, program: Program, given: Given, backend: Backend, outs: Mapping[str, Output]
) -> Iterator[Node]:
    """The launch of a cascade that reads the table."""
    name, span = f"table of {table}", int(evaluate(cascade.input(table).axes[-1], given.sizes))
    yield tables_of({table: name}, {table: span})
    known = given.more({table: described_table(given.tensors[table], span)})
    yield program.kernel(cascade, known, backend, outs, {table: name})


@dataclass(frozen=True, slots=True, eq=False)
class _Lists:
    """The lists of a call: ``index`` [points, length] says which list a coordinate of the lister has, of ``slots`` entries below ``span``.
    The points are those of the ambient ranks ``over``."""

    table: str
    over: Mapping[str, int]
    index: torch.Tensor
    span: int
    slots: int
    sort: Sort

    @staticmethod
    def of(table: str, found: routed.Routed, given: Given, backend: Backend) -> _Lists:
        c, axes = found.cascade, given.tensors[table].shape
        over = {r: extent_of(c, r, given.sizes) for r in found.others}
        length = extent_of(c, found.lister, given.sizes)
        at = evaluate_indices(
            c, found.atom.args[:-1], (*over, found.lister), dict(given.numbers), given.sizes, None, given.device
        )
        flat = torch.zeros((*over.values(), length), dtype=torch.int64, device=given.device)
        for n, axis in zip(at, axes[:-1], strict=True):
            flat = flat * axis + n.long()
        mine = functools.partial(backend.by_block, folder=cache.folder() / backend.name)
        sort: Sort = mine if given.device.type == "cpu" else by_block
        index = flat.reshape(-1, length)
        return _Lists(table, over, index, extent_of(c, found.chosen, given.sizes), axes[-1], sort)

    @property
    def length(self) -> int:
        return self.index.shape[1]

    def sorted(self, tensors: Tensors, tile: int, room: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The coordinates of the lister by what they chose, as `lists.by_block` gives them."""
        return self.sort(tensors[self.table].reshape(-1, self.slots), self.index, self.span, tile, room)


def described_table(entries: torch.Tensor, span: int) -> torch.Tensor:
    """The table of a list without its memory."""
    return torch.empty((*entries.shape[:-1], span), dtype=torch.bool, device="meta")


def tables_of(names: Mapping[str, str], spans: Mapping[str, int]) -> Host:
    """Makes the tables of lists."""

    def do(tensors: Tensors, call: Given) -> None:
        tensors |= {mine: members(tensors[n], spans[n]) for n, mine in names.items()}

    return Host("make tables", tuple(names), tuple(names.values()), do)


def of_rows(axes: Mapping[str, int], rows: int) -> Host:
    """States with room along an axis each as those of the rows alone, which are named as theirs "of rows"."""

    def do(tensors: Tensors, call: Given) -> None:
        tensors |= {f"{n} of rows": tensors[n].narrow(axis, 0, rows) for n, axis in axes.items()}

    return Host("rows of states", tuple(axes), tuple(f"{n} of rows" for n in axes), do)


def unblocked(names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], row: Mapping[str, int], over: int) -> Host:
    """Outputs by blocks [groups, .., width, ..] as those of all rows [.., rows, ..]."""

    def do(tensors: Tensors, call: Given) -> None:
        for n, blocks in names.items():
            shape, axis = shapes[n], over - 1 + row[n]
            found = tensors[blocks].unflatten(0, (*shape[:over], -1)).movedim(over, axis).flatten(axis, axis + 1)
            tensors[n] = found.narrow(axis, 0, shape[axis])

    return Host("rows of blocks", tuple(names.values()), tuple(names), do)


def flattened(names: Mapping[str, str], row: Mapping[str, int]) -> Host:
    """Parts [groups, .., tile, ..] as parts [pairs, ..]: one axis for all pairs."""

    def do(tensors: Tensors, call: Given) -> None:
        tensors |= {flat: tensors[n].movedim(row[n], 1).flatten(0, 1) for n, flat in names.items()}

    return Host("parts of pairs", tuple(names), tuple(names.values()), do)
