"""`plan`: an attention over rows of many sequences whose kernels, buffers and launches are chosen once, from capacities.

    rows of all sequences        update: a list of items for each tile          run: one launch a tile, in parts two
    s0 ....  s1 .  s2 .      ->   16 rows: (s0, 0, 4)   1 row: (s1, ..) (s2, ..)  ->  [items of 16] [items of 1]  ->  o

`ir.passes.items` is what the launches compute. ``update`` writes lists on the device of the tensors and reads nothing back from one;
``run`` is the nodes of a graph on tensors that are there: no operation of torch, no allocation, the same launches for all values.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from einfuse.ir import Scalar, SpecError
from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr
from einfuse.ir.passes import choose, heads_as_rows, items, split, stages
from einfuse.ir.passes.items import Items
from einfuse.ir.rewrite import map_expressions
from einfuse.runtime import backends, binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Node
from einfuse.runtime.outputs import Output, of_forward
from einfuse.runtime.program import Program
from einfuse.serving.cache import Cache, counts

Tensors = dict[str, torch.Tensor]
MOST_PARTS = 64


@dataclass(slots=True, eq=False)
class Tile:
    """The items of up to ``rows`` rows: those of sequences with more than ``above`` rows, and with no more than ``most``."""

    rows: int
    above: int
    most: int
    form: Items
    graph: Graph
    call: Given
    tensors: Tensors
    numbers: torch.Tensor
    _listed: Any = field(init=False, repr=False)
    _numbers: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        host = self.listed.is_cpu
        self._listed, self._numbers = (self.listed.numpy(), self.numbers.numpy()) if host else (None, None)

    @property
    def listed(self) -> torch.Tensor:
        return self.tensors[self.form.listed]

    def update(self, starts: Any, length: Any) -> None:
        """Writes the list of items; tensors, or arrays of numpy on the host, whose operations on a few numbers take a fifth of the time."""
        listed, numbers, search = self.listed, self.numbers, torch.searchsorted  # type: Any, Any, Any
        if isinstance(starts, np.ndarray):
            listed, numbers, search = self._listed, self._numbers, np.searchsorted
        rows = counts(starts)
        tiles = (rows + (self.rows - 1)) // self.rows
        if self.above or self.most:
            tiles = tiles * ((rows > self.above) & (rows <= self.most) if self.most else rows > self.above)
        ends = tiles.cumsum(0)
        sequence = search(ends, numbers, side="right")
        live = sequence < len(rows)
        sequence = sequence.clip(max=len(rows) - 1)
        offset = (numbers - (ends - tiles)[sequence]) * self.rows
        count, tokens = rows[sequence], length[sequence]
        listed[items.SEQUENCE] = sequence
        listed[items.BEGIN] = starts[sequence] + offset
        listed[items.COUNT] = (count - offset).clip(max=self.rows) * live
        listed[items.POSITION] = tokens - count + offset
        listed[items.TOKENS] = tokens * live


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

    def update(self, starts: torch.Tensor) -> None:
        """The work of the next runs, from ``starts`` [B + 1] and what `Cache.length` holds: sequence b has the rows ``starts[b]`` to
        ``starts[b + 1] - 1``, which are its last tokens.

        Raises ValueError for what does not fit, as far as it is on the host: a device is not asked.
        """
        if starts.shape != (len(self.cache.length) + 1,):
            raise ValueError(
                f"{self.attention.name}: starts must have the shape [{len(self.cache.length) + 1}], found {tuple(starts.shape)}"
            )
        ends: Any = starts
        length: Any = self.cache.length
        if starts.is_cpu and length.is_cpu:
            ends, length = starts.numpy(), length.numpy()
            self._check(ends, length)
            self._least = int(ends[-1])
        for tile in self.tiles:
            tile.update(ends, length)

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
    **given: torch.Tensor | Scalar,
) -> Plan:
    """A plan of calls whose keys are in ``cache``.

    ``given`` are the other inputs of the spec and its numbers: those that hold rows with as many rows as there may be, [T, ...] (``q``
    [T, H, D]); tables of positions as long as a sequence may be. A sequence is cut into items of as many rows as the least of ``tiles``
    that holds all its rows, or as the largest; each is a launch. Keys go in as many ``parts`` as keep the device busy, unless told.
    ``keys`` names the size of the tokens where a spec has several sizes of keys. Differentiates nothing.

    Raises SpecError for a spec that cannot be read from a cache by one kernel, with the statement and the reason, TypeError and ValueError
    as a call does.
    """
    _one_kernel(attention)
    rows = sorted(set(tiles))
    if not rows or rows[0] < 1:
        raise ValueError(f"{attention.name}: tiles are numbers of rows from 1 on, found {tuple(tiles)}")
    made: list[Tile] = []
    tensors: Tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)} | dict(cache.tensors)
    outs: Tensors = {}
    for n, tile in enumerate(rows):
        form = items.run(attention.cascade, tile, _group(attention.cascade, tensors, keys), cache.width, keys)
        total = _total(attention, form, tensors)
        above, most = rows[n - 1] if n else 0, tile if n + 1 < len(rows) else 0
        count = _most_items(len(cache.length), total, tile, above, most)
        listed = torch.zeros(items.TOKENS + 1, count, dtype=torch.int64, device=cache.page.device)
        mine = {**given, **cache.tensors, form.page: cache.page, form.listed: listed}
        found, numbers = binding.arguments(form.cascade, (), mine)
        binding.one_dtype(form.cascade, found)
        call = Given.of(form.cascade, found, numbers)
        graph, buffers = _graph(attention, form, call, parts, outs)
        numbered = torch.arange(count, device=listed.device)
        made.append(Tile(tile, above, most, form, graph, call.described(), {**found, **buffers}, numbered))
    own = tuple(t.name for t in attention.cascade.inputs if t.name in made[0].form.own)
    return Plan(attention, cache, tuple(made), own, tuple(outs[n] for n in attention.cascade.outs), tensors)


def _described(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device="meta")


def _one_kernel(attention: Attention) -> None:
    """Raises SpecError where a call takes more than one kernel over the keys."""
    c = attention.cascade
    if choose.chooses(c):
        raise SpecError(f"{c.name} cannot be planned: it chooses what it reads", c.loc)
    if not all(isinstance(x, Einsum) for x in c.body):
        raise SpecError(f"{c.name} cannot be planned: it is a scan, whose states are not in pages", c.loc)
    cut = stages.run(c)
    if len(cut) > 1:
        name = cut[0].outs[0]
        loc = next((x.loc for x in c.body if isinstance(x, Einsum) and x.target == name), c.loc)
        raise SpecError(f"{c.name} cannot be planned: {name} is complete only after a kernel over all tokens", loc)


def _group(c: Cascade, tensors: Mapping[str, torch.Tensor], keys: str) -> int:
    """How many heads share keys, by the tensors of a plan."""
    stacked = heads_as_rows.run(c)
    if stacked is None:
        return 1
    form, found = items.run(c, keys=keys), dict[Expr, int]()
    for t in c.inputs:
        x = tensors.get(t.name)
        if x is not None:
            lost = form.held.get(t.name) or ((t.axes.index(ex.size(_batch(c))), form.own[t.name]) if t.name in form.own else ())
            rest = [a for n, a in enumerate(t.axes) if n not in lost]
            found |= zip(rest, x.shape[x.ndim - len(rest) :], strict=False)
    heads = ex.size(stacked.heads.size)
    shared = found.get(ex.call("//", heads, stacked.group))
    return found[heads] // shared if shared and heads in found else 1


def _batch(c: Cascade) -> int | str:
    return next(r.size for r in c.ranks if r.name in c.over and r.kind == "batch")


def _total(attention: Attention, form: Items, tensors: Mapping[str, torch.Tensor]) -> int:
    """How many rows there may be."""
    missing = [n for n in form.own if n not in tensors]
    if missing:
        raise TypeError(f"{attention.name}: a plan is made for {missing[0]} [T, ...] with as many rows as there may be")
    return tensors[next(iter(form.own))].shape[0]


def _most_items(batch: int, total: int, tile: int, above: int, most: int) -> int:
    """The most items that so many rows of so many sequences can be."""
    sequences = min(batch, total // (above + 1))
    return max(1, sequences if most else min(total, total // tile + sequences))


def _graph(attention: Attention, form: Items, call: Given, parts: int | None, outs: Tensors) -> tuple[Graph, Tensors]:
    """The launches for the items, and the buffers between them; ``outs`` are the outputs, laid where there are none yet."""
    backend = backends.choose(call.device, attention.backend)
    program = Program(form.cascade, attention.strict)
    cut = None
    if parts is None:
        rows = math.prod(binding.extent_of(form.cascade, r, call.sizes) for r in form.cascade.over)
        parts = max(1, min(backend.workers(call.device) // max(rows, 1), MOST_PARTS))
        with contextlib.suppress(SpecError):  # several passes: each item keeps its keys to itself
            cut = split.run(form.cascade) if parts > 1 else None
    elif parts > 1:
        cut = split.run(form.cascade)
    written = {n: _output(program, form, call, n) for n in form.cascade.outs}

    def nodes(given: Given) -> Iterable[Node]:
        return (program.kernel(form.cascade, given, backend, written),) if cut is None else in_parts(given, cut, parts)

    def in_parts(given: Given, cut: split.Split, parts: int) -> Iterable[Node]:
        partial = Program(_shared_out(cut, form, parts), attention.strict, wide=True)
        merged = Program(cut.merged, attention.strict)
        states = partial.outputs(partial.cascade, given.tensors, given.sizes)
        yield partial.kernel(partial.cascade, given, backend, states, cut.held)
        numbers = {**given.numbers, **split.constants(cut.sizes, given.sizes)}
        held = {cut.held[n]: x.described() for n, x in states.items()}
        known = replace(given.more(held, {split.PARTS: parts}), numbers=numbers)
        yield merged.kernel(merged.cascade, known, backend, written)

    graph = Graph(nodes, call, tuple(form.cascade.outs))
    made = {n: x.materialised(call.device) for node in graph.nodes for n, x in node.makes.items() if n not in outs}
    outs |= {n: x for n, x in made.items() if n in form.cascade.outs}
    return graph, {n: x for n, x in made.items() if n not in outs}


def _output(program: Program, form: Items, call: Given, name: str) -> Output:
    """An output as it lies: rows first."""
    place = form.cascade.place(name)
    assert place is not None, "outputs of items have places"
    shape = tuple(int(binding.evaluate(a, call.sizes)) for a in place.axes)
    return Output(shape, of_forward(form.cascade, form.cascade.outs, call.tensors, call.sizes)[name].dtype)


def _shared_out(cut: split.Split, form: Items, parts: int) -> Cascade:
    """The parts of an item as equal shares of its own tokens, in place of bounds that all items have in common."""
    bounds = cut.partial.inputs[-1].name
    tokens = ex.load(form.listed, ex.const(items.TOKENS), ex.index(form.cascade.over[0]))

    def share(e: Expr) -> Expr | None:
        if e.op != "load" or e.name != bounds:
            return None
        part, end = e.args
        return ex.call("//", ex.call("*", tokens, ex.call("+", part, end)), ex.const(parts))

    moved = map_expressions(cut.partial, lambda e: ex.substitute(e, share))
    ranks = tuple(replace(r, size=parts) if r.size == split.PARTS else r for r in moved.ranks)
    return replace(moved, ranks=ranks, inputs=moved.inputs[:-1])
