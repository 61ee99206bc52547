"""`plan`: an attention over rows of many sequences whose kernels, buffers and launches are chosen once, from capacities.

    rows of all sequences        update: a list of items for each tile          run: one launch a tile, in parts two
    s0 ....  s1 .  s2 .      ->   16 rows: (s0, 0, 4)   1 row: (s1, ..) (s2, ..)  ->  [items of 16] [items of 1]  ->  o

`ir.passes.items` is what the launches compute. ``update`` writes lists on the device of the tensors and reads nothing back from one;
``run`` is the nodes of a graph on tensors that are there: no operation of torch, no allocation, the same launches for all values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from einfuse.ir import Scalar, SpecError
from einfuse.ir.passes import choose, stages
from einfuse.ir.rewrite import flat
from einfuse.runtime.attention import Attention
from einfuse.serving.cache import Cache, counts
from einfuse.serving.launches import Maker, Tensors
from einfuse.serving.lists import Step, Tile, alike, common, found


@dataclass(eq=False)
class Plan:
    """Calls of one attention with rows from many sequences, of fixed capacity. Made by `plan`."""

    attention: Attention
    cache: Cache
    tiles: tuple[Tile, ...]
    rows: tuple[str, ...]
    """The inputs that hold rows, in the order of the spec."""
    out: tuple[torch.Tensor, ...]
    """Where outputs go without an ``out``: [T + 1, ...], the last row for what belongs to none."""
    given: Tensors = field(repr=False)
    """The tensors that a run reads where it is given no others."""
    prefixes: bool
    invariant: bool
    _kept: tuple[torch.Tensor, ...] = field(init=False, repr=False)
    _least: int = field(init=False, repr=False)
    """How many rows a run has at least: those of the last update, where they were on the host, or all."""

    def __post_init__(self) -> None:
        self._kept = tuple(x[:-1] for x in self.out)
        self._least = self.most

    @property
    def most(self) -> int:
        """How many rows a run has at most."""
        return self.given[self.rows[0]].shape[0]

    @property
    def launches(self) -> int:
        """How many kernels every run launches."""
        return sum(len(t.graph.nodes) for t in self.tiles)

    def forget(self) -> None:
        """Holds none of the tensors of a call that it was made with any more: from now on a run is given all of them."""
        self.given = {n: _described(x) for n, x in self.given.items()}
        self.cache = replace(self.cache, tensors={n: self.given[n] for n in self.cache.tensors})
        for tile in self.tiles:
            tile.tensors |= self.given

    def update(self, starts: torch.Tensor, shared: torch.Tensor | None = None) -> None:
        """The work of the next runs, from ``starts`` [B + 1] and what `Cache.length` holds: sequence b has the rows ``starts[b]`` to
        ``starts[b + 1] - 1``, which are its last tokens.

        Of a plan with prefixes ``shared`` [B] says how many first tokens, in whole pages, are in the pages of all other sequences that
        begin with the same page and share as many; without it, pages are compared. Raises ValueError for what does not fit, as far as it
        is on the host: a device is not asked.
        """
        batch = len(self.cache.length)
        for name, x, count in (("starts", starts, batch + 1), ("shared", shared, batch)):
            if x is not None and x.shape != (count,):
                raise ValueError(f"{self.attention.name}: {name} must have the shape [{count}], found {tuple(x.shape)}")
        told: tuple[Any, ...] = (starts, self.cache.length, self.cache.page, shared)
        host = all(x is None or x.is_cpu for x in told)
        starts_, length, page, shared_ = (x.numpy() if host and x is not None else x for x in told)
        if host:
            self._check(starts_, length)
            self._least = int(starts_[-1])
        step = Step(starts_, length, *self._shared(counts(starts_), length, page, shared_, host))
        for tile in self.tiles:
            tile.update(step)

    def _shared(self, rows: Any, length: Any, page: Any, shared: Any, host: bool) -> tuple[Any, ...]:
        """How many first tokens each sequence shares, and with whom."""
        name, width = self.attention.name, self.cache.width
        if shared is not None and not self.prefixes:
            raise ValueError(f"{name}: what is shared is for a plan with prefixes=True")
        if not self.prefixes:
            return ()
        if shared is None and self.invariant:
            raise ValueError(
                f"{name}: an invariant plan has to be told what is shared: looking for it depends on all sequences"
            )
        if shared is None:
            pages, leader = found(page, length // width, rows > 0)
            return pages * width, leader
        _, leader = alike(page, (rows > 0) & (shared > 0), shared)
        if host:
            wrong = (shared < 0) | (shared > length) | (shared % width != 0)
            wrong |= (rows > 0) & (shared > 0) & (common(page, leader) * width < shared)
            if wrong.any():
                b = int(wrong.argmax())
                raise ValueError(
                    f"{name}: sequence {b} shares {int(shared[b])} of {int(length[b])} tokens, which are to be whole pages of "
                    f"{width}, the same as those of sequence {int(leader[b])}"
                )
        return shared, leader

    def _check(self, starts: Any, length: Any) -> None:
        rows = counts(starts)
        wrong = (rows < 0) | (length < rows) | (length > self.cache.room)
        if wrong.any():
            b = int(wrong.argmax())
            raise ValueError(
                f"{self.attention.name}: sequence {b} has {int(rows[b])} rows and {int(length[b])} tokens; "
                f"rows are the last tokens, of which there is room for {self.cache.room}"
            )
        first, last = int(starts[0]), int(starts[-1])
        if first or last > self.most:
            raise ValueError(
                f"{self.attention.name}: starts begin at 0 and end at {self.most} at most, found {first} and {last}"
            )

    def run(
        self,
        *rows: torch.Tensor,
        out: torch.Tensor | Sequence[torch.Tensor] | None = None,
        **other: torch.Tensor,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The attention of the rows: ``run(q)``, with keys of another layer ``run(q, k=..., v=...)``.

        Writes into ``out`` and returns it, [T + 1, ...] with a last row for what belongs to none; without it into `Plan.out`, and
        returns its T rows. Rows behind the last start are left as they are. Tensors have the shapes and dtypes of the plan, or fewer rows
        where an update on the host saw that there are no more; what is left out is as it was given there.
        """
        given = dict(zip(self.rows, rows, strict=False)) | other if rows or other else {}
        for n, x in given.items():
            known = self.given.get(n)
            if known is None or not self._fits(n, x, known):
                found = f"{tuple(x.shape)} {x.dtype}"
                wanted = "no input" if known is None else f"{tuple(known.shape)} {known.dtype}"
                fewer = (
                    f", or of {self._least} to {self.most} rows"
                    if known is not None and n in self.rows and x.dtype == known.dtype
                    else ""
                )
                raise ValueError(f"{self.attention.name}: {n} is {wanted} in this plan{fewer}, found {found}")
        outs = self.out if out is None else (out,) if isinstance(out, torch.Tensor) else tuple(out)
        named = dict(zip(self.attention.cascade.outs, outs, strict=True))
        for tile in self.tiles:
            tensors = {**tile.tensors, **given, **named}
            for node in tile.graph.nodes:
                node.run(tensors, tile.call)
        if out is not None:
            return out if isinstance(out, torch.Tensor) else outs
        count = min((x.shape[0] for n, x in given.items() if n in self.rows), default=self.most)
        kept = self._kept if count == self.most else tuple(x[:count] for x in self._kept)
        return kept[0] if len(outs) == 1 else kept

    def _fits(self, name: str, x: torch.Tensor, known: torch.Tensor) -> bool:
        """Whether a tensor is like the one that the plan was made with."""
        if x.dtype != known.dtype or x.shape == known.shape:
            return x.dtype == known.dtype
        return name in self.rows and x.shape[1:] == known.shape[1:] and self._least <= x.shape[0] < self.most


def plan(
    attention: Attention,
    cache: Cache,
    *,
    tiles: Sequence[int] = (1, 16),
    parts: int | None = None,
    keys: str = "",
    prefixes: bool = False,
    invariant: bool = False,
    **given: torch.Tensor | Scalar,
) -> Plan:
    """A plan of calls whose keys are in ``cache``.

    ``given`` are the other inputs of the spec and its numbers: those that hold rows with as many rows as there may be, [T, ...] (``q``
    [T, H, D]); tables of positions as long as a sequence may be. A sequence is cut into items of as many rows as the least of ``tiles``
    that holds all its rows, or as the largest; each is a launch. Keys go in as many ``parts`` as keep the device busy, unless told.
    ``keys`` names the size of the tokens where a spec has several sizes of keys. Differentiates nothing.

    ``prefixes``: tokens in pages that several sequences begin with are read once for as many of their rows as the largest tile holds,
    in a launch of its own, and one more puts the states of rows together. For attention of one pass. ``invariant``: the bits of a
    sequence do not depend on the others, so an update has to be told what is shared and does not look for it.

    Raises SpecError for a spec that cannot be read from a cache by one kernel, with the statement and the reason, TypeError and ValueError
    as a call does.
    """
    _one_kernel(attention)
    rows = sorted(set(tiles))
    if not rows or rows[0] < 1:
        raise ValueError(f"{attention.name}: tiles are numbers of rows from 1 on, found {tuple(tiles)}")
    maker = Maker(attention, cache, given, keys, parts)
    made = maker.tiles(rows, prefixes)
    tensors: Tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)} | dict(cache.tensors)
    own = tuple(t.name for t in attention.cascade.inputs if t.name in made[0].form.own)
    outs = tuple(maker.outs[n] for n in attention.cascade.outs)
    return Plan(attention, cache, made, own, outs, tensors, prefixes, invariant)


def _described(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _one_kernel(attention: Attention) -> None:
    """Raises SpecError where a call takes more than one kernel over the keys."""
    c = attention.cascade
    if choose.chooses(c):
        raise SpecError(f"{c.name} cannot be planned: it chooses what it reads", c.loc)
    cut = stages.run(flat(c, f"{c.name} cannot be planned: it is a scan, whose states are not in pages"))
    if len(cut) > 1:
        name = cut[0].outs[0]
        loc = next((x.loc for x in c.einsums if x.target == name), c.loc)
        raise SpecError(f"{c.name} cannot be planned: {name} is complete only after a kernel over all tokens", loc)
