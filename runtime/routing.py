"""Rows that lists route to some points of an ambient rank (`ir.passes.routed`): heads that a row did not choose are not computed for it.

list  ->  [rows by routes]  ->  h_at, i_at  ->  [routed]  ->  states of rows  ->  [finalise]  ->  o
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.passes import routed, split
from einfuse.ir.ranking import members
from einfuse.runtime import cache
from einfuse.runtime.binding import evaluate, extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Host, Node, Tensors
from einfuse.runtime.lists import TILE, by_block
from einfuse.runtime.outputs import Output, accumulation

if TYPE_CHECKING:
    from einfuse.runtime.backends import Backend
    from einfuse.runtime.program import Program

Made = tuple[routed.Groups, "Program", "Program"]


def nodes(
    table: str, found: routed.Routed, made: Made, given: Given, backend: Backend, outs: Mapping[str, Output]
) -> Iterator[Node]:
    """The launch of a cascade by the lists in place of its ``table``."""
    groups, first, second = made
    c = found.cascade
    over = {r: extent_of(c, r, given.sizes) for r in found.others}
    rows, span, slots = (
        extent_of(c, found.rows, given.sizes),
        extent_of(c, found.chosen, given.sizes),
        given.tensors[table].shape[-1],
    )
    index = _index(table, found, given, over, rows)
    lanes, count = len(index), -(-rows * slots // TILE) + span
    sort = functools.partial(backend.by_block, folder=cache.folder() / backend.name) if given.device.type == "cpu" else by_block

    def route(tensors: Tensors, call: Given) -> None:
        at, start, _ = sort(tensors[table].reshape(-1, slots), index, span, TILE, count * TILE)
        places = torch.arange(0, count * TILE, TILE, dtype=torch.int32, device=at.device).expand(lanes, -1)
        point = torch.searchsorted(start.contiguous(), places.contiguous(), right=True, out_int32=True) - 1
        tensors[groups.at[found.chosen]] = point
        tensors[groups.at[found.rows]] = torch.where(at < 0, rows, at).view(lanes, count, TILE)
        lane = torch.arange(lanes, dtype=torch.int32, device=at.device)
        for r, extent in reversed(over.items()):
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
    axis = len(c.over)
    yield of_rows({n: f"{n} of rows" for n in states.values()}, axis, rows)
    held = {groups.held[y]: torch.empty(s, dtype=wide, device="meta").narrow(axis, 0, rows) for y, s in shapes.items()}
    names = {groups.held[y]: f"{n} of rows" for y, n in states.items()}
    if any(t.name == table for t in groups.finalise.inputs):  # a condition of an output, too
        names[table] = f"table of {table}"
        held[table] = torch.empty((*given.tensors[table].shape[:-1], span), dtype=torch.bool, device="meta")
        yield tables_of({table: names[table]}, {table: span})
    finishing = replace(given.more(held), numbers={**given.numbers, **split.constants(groups.sizes, given.sizes)})
    yield second.kernel(groups.finalise, finishing, backend, outs, names)


def _index(table: str, found: routed.Routed, given: Given, over: Mapping[str, int], rows: int) -> torch.Tensor:
    """Which list a row of a point of the other ambient ranks has: [points, rows]."""
    c, axes = found.cascade, given.tensors[table].shape[:-1]
    at = evaluate_indices(c, found.atom.args[:-1], (*over, found.rows), dict(given.numbers), given.sizes)
    flat = torch.zeros((*over.values(), rows), dtype=torch.int64)
    for n, axis in zip(at, axes, strict=True):
        flat = flat * axis + n.long()
    return flat.reshape(-1, rows).to(given.device)


def tables_of(names: Mapping[str, str], spans: Mapping[str, int]) -> Host:
    """Makes the tables of lists."""

    def do(tensors: Tensors, call: Given) -> None:
        tensors |= {mine: members(tensors[n], spans[n]) for n, mine in names.items()}

    return Host("make tables", tuple(names), tuple(names.values()), do)


def of_rows(names: Mapping[str, str], axis: int, rows: int) -> Host:
    """States [.., room, ..] as those of the rows [.., rows, ..] alone."""

    def do(tensors: Tensors, call: Given) -> None:
        tensors |= {mine: tensors[n].narrow(axis, 0, rows) for n, mine in names.items()}

    return Host("rows of states", tuple(names), tuple(names.values()), do)
