"""A launch with few rows and many keys: workers take parts of the keys, and a second kernel puts their states together.

One query over 16k keys of 2 heads is 2 tiles; on 8 cores that is 8 parts of 4k keys, then the merge that `ir.passes.split` derives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade, SpecError
from einfuse.ir.nodes import Einsum
from einfuse.ir.passes import split as splitting
from einfuse.runtime import cache
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.launch import Ready

if TYPE_CHECKING:
    from einfuse.runtime.backends import Backend
    from einfuse.runtime.program import Program

FEWEST = 512  # keys of a part: below, the merge costs more than the parts save
TILE = 16  # rows that a tile of any back end holds at least: more rows are more tiles


@dataclass(frozen=True, slots=True)
class Halves:
    """A program in two steps; ``names`` are the states, as the first writes and the second reads them."""

    split: splitting.Split
    partial: Program
    merged: Program

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        return tuple((n, self.split.held[n]) for n in self.split.states)


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
    folds = {r for x in c.body if isinstance(x, Einsum) for r in x.over if r in rows}
    if workers <= 1 or len(folds) != 1:
        return 1
    (fold,) = folds
    own = [n for n in rows if n not in c.over and n != fold]
    items = math.prod(extent[r] for r in c.over) * math.prod(math.ceil(extent[r] / TILE) for r in own)
    return parts(items, extent[fold], workers)


def ready(program: Program, count: int, given: Given, backend: Backend) -> Ready | None:
    """The launch in that many parts for tensors like these (outputs included), or None where the program cannot be split."""
    both = program.halves
    if both is None:
        return None
    first, second = both.partial.cascade, both.merged.cascade
    keys = extent_of(program.cascade, both.split.rank, given.sizes)
    ends = [keys * n // count for n in range(count + 1)]
    device = given.device
    bounds = torch.tensor(list(itertools.pairwise(ends)), device=device)
    known = given.more({first.inputs[-1].name: bounds}, {splitting.PARTS: count})
    states = both.partial.allocate(first, known.tensors, known.sizes)
    held = known.more({b: states[a] for a, b in both.names})
    asked = {t.name for t in second.inputs}
    told = {**given.numbers, **splitting.constants(both.split.sizes, given.sizes)}
    begin = both.partial.ready(first, known.more(states), backend)
    end = both.merged.ready(second, replace(held, numbers={n: x for n, x in told.items() if n in asked}), backend)
    shapes = [(n, x.shape, x.dtype) for n, x in states.items()]
    names = dict(both.names)

    def run(tensors: Mapping[str, torch.Tensor]) -> None:
        fresh = {n: torch.empty(shape, dtype=dtype, device=device) for n, shape, dtype in shapes}
        begin({**tensors, first.inputs[-1].name: bounds, **fresh})
        end({**tensors, **{names[n]: x for n, x in fresh.items()}})

    return run
