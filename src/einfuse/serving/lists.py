"""The work of a step as lists of items: of rows of one sequence, and of rows of several over the tokens that they share.

Written by operations that numpy and torch have in common: arrays of numpy on the host, where an operation on a few numbers takes a
fifth of torch's time, and tensors on a device, from which nothing is read back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from einfuse.ir.passes import items
from einfuse.ir.passes.items import Items
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph
from einfuse.serving.cache import counts


@dataclass(frozen=True, slots=True)
class Step:
    """The sequences of a step: where their rows start, and how many tokens they have. The first ``shared`` of these lie in the pages of
    the sequence ``leader`` (None: nothing is shared)."""

    starts: Any
    length: Any
    shared: Any = None
    leader: Any = None


def alike(page: Any, there: Any, shared: Any = None) -> tuple[Any, Any]:
    """Who begins with the same page [B, B], of those that are there; and the first of them [B]. ``shared``: and shares as many tokens."""
    same = (page[:, :1] == page[:, 0]) & there & there[:, None]
    if shared is not None:
        same = same & (shared[:, None] == shared)
    return same, (same * 1).argmax(1)


def common(page: Any, leader: Any) -> Any:
    """How many pages each sequence has in common with its leader, from the first on."""
    return (page == page[leader]).cumprod(1).sum(1)


def found(page: Any, full: Any, there: Any) -> tuple[Any, Any]:
    """How many first pages each sequence shares with its leader, and that leader: those that begin with the same page are cut where most
    reads are saved. Of the tokens of a sequence ``full`` pages are full."""
    same, leader = alike(page, there & (full > 0))
    mine = common(page, leader)
    mine = mine.clip(max=full).clip(max=full[leader]) * there
    saved = mine * ((same & (mine >= mine[:, None])).sum(1) - 1)
    best = (saved * same).argmax(1)
    return mine[best] * ((mine >= mine[best]) & (saved[best] > 0)), leader


@dataclass(slots=True, eq=False)
class Tile:
    """The items of up to ``rows`` rows: those of sequences with more than ``above`` rows, and with no more than ``most``."""

    rows: int
    above: int
    most: int
    form: Items
    graph: Graph
    call: Given
    tensors: dict[str, torch.Tensor]
    _listed: Any = field(init=False, repr=False)
    _numbers: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._listed = _array(self.listed)
        self._numbers = _array(torch.arange(self.listed.shape[1], device=self.listed.device))

    @property
    def listed(self) -> torch.Tensor:
        return self.tensors[self.form.listed]

    def update(self, step: Step) -> None:
        """Writes the list of items."""
        listed, numbers = self._listed, self._numbers
        rows = counts(step.starts)
        tiles = (rows + (self.rows - 1)) // self.rows
        if self.above or self.most:
            tiles = tiles * ((rows > self.above) & (rows <= self.most) if self.most else rows > self.above)
        ends = tiles.cumsum(0)
        sequence = _search(ends, numbers)
        live = sequence < len(rows)
        sequence = sequence.clip(max=len(rows) - 1)
        offset = (numbers - (ends - tiles)[sequence]) * self.rows
        count, tokens = rows[sequence], step.length[sequence]
        listed[items.SEQUENCE] = sequence
        listed[items.BEGIN] = step.starts[sequence] + offset
        listed[items.COUNT] = (count - offset).clip(max=self.rows) * live
        listed[items.POSITION] = tokens - count + offset
        listed[items.TOKENS] = tokens * live
        if step.shared is not None:
            listed[items.FIRST] = step.shared[sequence] * live


@dataclass(slots=True, eq=False)
class Prefixes(Tile):
    """Items of up to ``rows`` rows of several sequences over the first tokens that they share; rows that share none are items without
    tokens, so that every row has a state of these."""

    _members: Any = field(init=False, repr=False)
    _each: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        Tile.__post_init__(self)
        members, batch = self.tensors[self.form.members], self.tensors[self.form.page].shape[0]
        self._members = _array(members)
        self._each = _array(torch.arange(max(self.rows, batch + 1), device=members.device))

    def update(self, step: Step) -> None:
        rows, batch = counts(step.starts), len(step.length)
        listed, numbers = self._listed, self._numbers
        inside, each, groups = (self._each[:n] for n in (self.rows, batch, batch + 1))  # the last group shares nothing
        group = step.leader + (batch - step.leader) * (step.shared == 0)
        order = (group * batch + each).argsort()
        ends = rows[order].cumsum(0)
        many = ((group == groups[:, None]) * rows).sum(1)
        tiles = (many + (self.rows - 1)) // self.rows
        lasts = tiles.cumsum(0)
        mine = _search(lasts, numbers)
        live = mine <= batch
        mine = mine.clip(max=batch)
        offset = (numbers - (lasts - tiles)[mine]) * self.rows
        at = (many.cumsum(0) - many)[mine] + offset
        place = at[:, None] + inside
        k = _search(ends, place).clip(max=batch - 1)
        row = step.starts[order[k]] + place - (ends - rows[order])[k]
        some = live[:, None] & (inside < (many[mine] - offset)[:, None])
        total = self.tensors[self.form.rows].shape[1] - 1
        self._members[:] = total + (row - total) * some
        leader = mine.clip(max=batch - 1)
        listed[items.SEQUENCE] = leader
        listed[items.TOKENS] = step.shared[leader] * (live & (mine < batch))


def _array(x: torch.Tensor) -> Any:
    """What is written to: on the host by numpy."""
    return x.numpy() if x.is_cpu else x


def _search(ends: Any, values: Any) -> Any:
    """Between which ends values lie: behind those that are not greater."""
    if isinstance(ends, np.ndarray):
        return np.searchsorted(ends, values, side="right")
    return torch.searchsorted(ends, values, right=True)
