"""A launch with few rows and many keys: workers take parts of the keys, and a second kernel puts their states together.

One query over 16k keys of 2 heads is 2 tiles; on 8 cores that is 8 parts of 4k keys, then the merge that `ir.passes.split` derives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade, SpecError
from einfuse.ir.passes import split as splitting
from einfuse.runtime import cache
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Host

if TYPE_CHECKING:
    from einfuse.runtime.backends import Backend
    from einfuse.runtime.graph import Kernel, Tensors
    from einfuse.runtime.outputs import Output
    from einfuse.runtime.program import Program

FEWEST = 512  # keys of a part: below, the merge costs more than the parts save
TILE = 16  # rows that a tile of any back end holds at least: more rows are more tiles


@dataclass(frozen=True, slots=True)
class Halves:
    """A program in two steps."""

    split: splitting.Split
    partial: Program
    merged: Program


def halves(program: Program) -> Halves | None:
    """The two steps of a program, or None where it cannot be split."""
    found = cache.remembered("split", cache.key("split", program.cascade.digest), lambda: _found(program.cascade))
    if found is None:
        return None
    of = type(program)
    return Halves(found, of(found.partial, program.strict, wide=True), of(found.merged, program.strict, program.wide))


def _found(cascade: Cascade) -> splitting.Split | None:
    try:
        return splitting.run(cascade)
    except SpecError:
        return None


def parts(items: int, keys: int, workers: int) -> int:
    """Into how many parts the keys go, so that the busiest worker has the least to do: 1 where tiles alone keep them busy."""
    if items == 0 or items >= workers:
        return 1
    most = max(1, min(math.ceil(workers / items), keys // FEWEST))
    return min(range(1, most + 1), key=lambda n: math.ceil(items * n / workers) / n)


def planned(program: Program, sizes: Mapping[str, int], workers: int) -> int:
    """The parts for a call of these sizes."""
    c = program.cascade
    rows = [r.name for r in c.ranks if r.is_sequence]
    extent = {n: extent_of(c, n, sizes) for n in rows}
    folds = {r for x in c.einsums for r in x.over if r in rows}
    if workers <= 1 or len(folds) != 1:
        return 1
    (fold,) = folds
    own = [n for n in rows if n not in c.over and n != fold]
    items = math.prod(extent[r] for r in c.over) * math.prod(math.ceil(extent[r] / TILE) for r in own)
    return parts(items, extent[fold], workers)


def nodes(
    program: Program, count: int, given: Given, backend: Backend, outs: Mapping[str, Output]
) -> tuple[Host, Kernel, Kernel] | None:
    """The launch in that many parts for tensors like these, which writes ``outs``; None where the program cannot be split."""
    both = program.halves
    if both is None:
        return None
    first, second = both.partial.cascade, both.merged.cascade
    name, device = first.inputs[-1].name, given.device

    def bounds(tensors: Tensors, call: Given) -> None:
        ends = extent_of(program.cascade, both.split.rank, call.sizes) * torch.arange(count + 1, device=device) // count
        tensors[name] = ends.unfold(0, 2, 1)  # made on the device: a copy from the host would wait for all it has to do

    cut = Host("bounds of the parts", (), (name,), bounds)
    known = given.more({name: torch.empty((count, 2), dtype=torch.int64, device="meta")}, {splitting.PARTS: count})
    states = both.partial.outputs(first, known.tensors, known.sizes)
    begin = both.partial.kernel(first, known, backend, states, both.split.held)
    numbers = {**given.numbers, **splitting.constants(both.split.sizes, given.sizes)}
    held = {both.split.held[n]: x.described() for n, x in states.items()}
    merge = both.merged.kernel(second, replace(known.more(held), numbers=numbers), backend, outs)
    merge.sized = {p: n for n, p in both.split.sizes.items()}
    return cut, begin, merge
