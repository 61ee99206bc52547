"""The launches of a plan: a kernel for each tile of rows, in parts two; where prefixes are shared, their items too, and one merge of all.

tiles of 1, 16:             [items of 1]  [items of 16]                                       -> o
parts:                      [items of 1, parts] [merge of each]  [items of 16, parts] [..]    -> o
shared prefixes:            [prefixes]  [items of 1]  [items of 16]  -> states of rows -> [merge of rows] -> o
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch

from einfuse.ir import Scalar, SpecError
from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Expr
from einfuse.ir.passes import heads_as_rows, item_parts, items, split
from einfuse.ir.passes.items import Items
from einfuse.runtime import backends, binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Node
from einfuse.runtime.outputs import Output, of_forward
from einfuse.runtime.program import Program
from einfuse.serving.cache import Cache
from einfuse.serving.lists import Prefixes, Tile

Tensors = dict[str, torch.Tensor]
MOST_PARTS = 64
_NONE: Mapping[str, torch.Tensor] = MappingProxyType({})


@dataclass(eq=False)
class Maker:
    """Makes the tiles of a plan. ``outs`` is what they write together: the outputs, and the states of rows."""

    attention: Attention
    cache: Cache
    given: Mapping[str, torch.Tensor | Scalar]
    keys: str
    parts: int | None
    outs: Tensors = field(default_factory=dict)
    group: int = field(init=False)
    total: int = field(init=False)
    """How many rows there may be."""

    def __post_init__(self) -> None:
        tensors = {n: x for n, x in {**self.given, **self.cache.tensors}.items() if isinstance(x, torch.Tensor)}
        self.group = _group(self.attention.cascade, tensors, self.keys)
        own = items.run(self.attention.cascade, keys=self.keys).own
        missing = [n for n in own if n not in tensors]
        if missing:
            raise TypeError(
                f"{self.attention.name}: a plan is made for {missing[0]} [T, ...] with as many rows as there may be"
            )
        self.total = tensors[next(iter(own))].shape[0]

    def tiles(self, rows: Sequence[int], prefixes: bool) -> tuple[Tile, ...]:
        """The tiles in the order that they are launched in."""
        spans = [(n, rows[at - 1] if at else 0, n if at + 1 < len(rows) else 0) for at, n in enumerate(rows)]
        return self._with_prefixes(spans) if prefixes else tuple(self._tile(*span) for span in spans)

    def _tile(self, rows: int, above: int, most: int) -> Tile:
        """Items that write the outputs."""
        form = self._form(rows)
        call = self._call(form, self._count(rows, above, most))
        cut, parts = self._cut(form, call)
        outs = {n: _output(form.cascade, call, n, form.cascade.outs) for n in form.cascade.outs}
        spec = self.attention  # graphs keep what makes their nodes: it must not hold the cache

        def nodes(given: Given) -> Iterable[Node]:
            if cut is None:
                return (_kernel(spec, form.cascade, given, outs),)
            partial = item_parts.run(cut, form, parts)
            states = of_forward(partial, (), given.tensors, given.sizes)
            return (_kernel(spec, partial, given, states, cut, wide=True), _merge(spec, cut, given, states, parts, outs))

        return Tile(rows, above, most, form, *self._laid(nodes, call, form.cascade.outs))

    def _with_prefixes(self, spans: Sequence[tuple[int, int, int]]) -> tuple[Tile, ...]:
        """Items that write states of rows: of the tokens that several sequences share, and of the others; and what puts them together."""
        form, most = self._form(1), spans[-1][0]
        rows = self._call(form, self.total + 1)
        whole, parts, outs, spec = split.run(form.cascade), self.parts or 1, form.cascade.outs, self.attention
        states: dict[str, Output] = {}

        def tile(kind: type[Tile], form: Items, call: Given, span: tuple[int, int, int]) -> Tile:
            cut, after = split.run(form.cascade), kind is Tile
            partial = item_parts.run(cut, form, parts, after)
            partial = item_parts.by_rows(partial, form, parts if after else 0, 2 * parts)
            states.update({n: _output(partial, call, n, ()) for n in partial.outs})

            def nodes(given: Given) -> Iterable[Node]:
                return (_kernel(spec, partial, given, states, whole, wide=True),)

            return kind(*span, form, *self._laid(nodes, call, tuple(whole.held.values())))

        common = self._form(most, shared=True)
        count = self._count(most, 0, 0)
        members = torch.zeros(count, most, dtype=torch.int64, device=rows.device)
        first = self._call(common, count, {common.members: members, common.rows: rows.tensors[form.listed]})
        made = [tile(Prefixes, common, first, (most, 0, 0))]
        for span in spans:
            own = self._form(span[0])
            made.append(tile(Tile, own, self._call(own, self._count(*span)), span))
        written = {n: _output(form.cascade, rows, n, outs) for n in outs}
        merge = self._laid(lambda given: (_merge(spec, whole, given, states, 2 * parts, written),), rows, outs)
        last = Tile(1, 0, 0, form, *merge)
        return (*made, last)

    # -- of one tile -------------------------------------------------------------------------------------------------------------

    def _form(self, rows: int, shared: bool = False) -> Items:
        return items.run(self.attention.cascade, rows, self.group, self.cache.width, self.keys, shared)

    def _count(self, rows: int, above: int, most: int) -> int:
        """The most items that the rows of the sequences with so many can be."""
        sequences = min(len(self.cache.length), self.total // (above + 1))
        return max(1, sequences if most else min(self.total, self.total // rows + sequences))

    def _call(self, form: Items, count: int, more: Mapping[str, torch.Tensor] = _NONE) -> Given:
        """What a launch is given, with an empty list of items."""
        listed = torch.zeros(items.COLUMNS, count, dtype=torch.int64, device=self.cache.page.device)
        mine = {**self.given, **self.cache.tensors, form.page: self.cache.page, form.listed: listed, **more}
        found, numbers = binding.arguments(form.cascade, (), mine)
        binding.one_dtype(form.cascade, found)
        return Given.of(form.cascade, found, numbers)

    def _cut(self, form: Items, call: Given) -> tuple[split.Split | None, int]:
        """The split of a cascade where its keys go in parts, and in how many."""
        if self.parts is not None:
            return (split.run(form.cascade), self.parts) if self.parts > 1 else (None, 1)
        rows = math.prod(binding.extent_of(form.cascade, r, call.sizes) for r in form.cascade.over)
        parts = max(
            1, min(backends.choose(call.device, self.attention.backend).workers(call.device) // max(rows, 1), MOST_PARTS)
        )
        with contextlib.suppress(SpecError):  # several passes: each item keeps its keys to itself
            return (split.run(form.cascade), parts) if parts > 1 else (None, 1)
        return None, 1

    def _laid(
        self, nodes: Callable[[Given], Iterable[Node]], call: Given, outs: tuple[str, ...]
    ) -> tuple[Graph, Given, Tensors]:
        """The graph, its call, and its tensors; those in ``outs`` are laid where there are none yet."""
        graph = Graph(nodes, call, outs)
        made = {n: x.materialised(call.device) for node in graph.nodes for n, x in node.makes.items() if n not in self.outs}
        self.outs |= {n: x for n, x in made.items() if n in outs}
        return graph, call.described(), {**call.tensors, **made, **self.outs}


def _kernel(
    spec: Attention,
    cascade: Cascade,
    given: Given,
    outs: Mapping[str, Output],
    cut: split.Split | None = None,
    wide: bool = False,
) -> Node:
    """The launch of a cascade made of that of an attention."""
    program = Program(cascade, spec.strict, wide=wide)
    return program.kernel(
        cascade, given, backends.choose(given.device, spec.backend), outs, cut.held if cut is not None else {}
    )


def _merge(
    spec: Attention,
    cut: split.Split,
    given: Given,
    states: Mapping[str, Output],
    parts: int,
    outs: Mapping[str, Output],
) -> Node:
    """The launch that makes outputs of the states of parts."""
    held = {cut.held[n]: x.described() for n, x in states.items()}
    numbers = {**given.numbers, **split.constants(cut.sizes, given.sizes)}
    return _kernel(spec, cut.merged, replace(given.more(held, {split.PARTS: parts}), numbers=numbers), outs)


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


def _output(cascade: Cascade, call: Given, name: str, public: tuple[str, ...]) -> Output:
    """An output as it lies: rows first."""
    place = cascade.place(name)
    assert place is not None, "outputs of items have places"
    shape = tuple(int(binding.evaluate(a, call.sizes)) for a in place.axes)
    return Output(shape, of_forward(cascade, public, call.tensors, call.sizes)[name].dtype)
