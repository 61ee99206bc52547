"""Cuts a cascade where it chooses coordinates: the scores, the choice, and the rest, which reads the lists as inputs.

    sel[i, n] = topk[w] g[i, w] where w * 64 <= i             step 1: g, and where it exists
    s[i, j] = .. where j <= i and j // 64 in sel[i]    ->     step 2: sel, of these (`ir.ranking`)
    o[i, e] = ..                                              step 3: a table of truth values of sel
                                                              rest:   s[i, j] = .. where j <= i and sel_has[i, j // 64]

No gradient goes through a choice, so that only the rest is ever differentiated. A list that is a statement of its own (some slots of another
one) is a step too, and so are the scores of a choice that looks into earlier lists. Every cascade that comes out knows coordinates that are
data only as tensors of ints and tables of truth values, like those that a call gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.definitions import Definitions
from einfuse.ir.errors import SpecError
from einfuse.ir.extents import most_of, not_negative, span_of
from einfuse.ir.nodes import Cascade, DType, Einsum, Expr, Flat, Tensor
from einfuse.ir.passes import lift, stages
from einfuse.ir.rewrite import flat, fresh, lists, map_expressions, prune, reading, statements, taken, types_of
from einfuse.ir.spaces import inferred


@dataclass(frozen=True, slots=True)
class Scores:
    """Runs ``cascade`` and makes of its outputs the list ``target``.

    The output ``value`` holds what is ranked, along its last ``ranked`` axes, into as many slots as ``slots`` says; where ``ranked`` is 0 it
    holds the entries themselves. The output ``exists`` is 1 at the points that exist (None: all). ``whole`` numbers are ranked exactly.
    ``kept`` is what the values are called where a later step reads them.
    """

    cascade: Flat
    target: str
    value: str
    exists: str | None
    ranked: int
    slots: Expr | None
    whole: bool
    kept: str | None = None

    @property
    def ranks(self) -> tuple[str, ...]:
        """Those of the values, but for the ambient ones: rows, then candidates."""
        return next(x.ranks for x in statements(self.cascade) if x.target == self.value)

    @property
    def ways(self) -> Iterator[Scores]:
        """What kernels may compute, the first that they can: the step as it stands, then with the candidates of a row held whole, so that
        other positions may be summed over for each of them. None for whole numbers."""
        if self.whole:
            return
        yield self
        rows, candidates = self.ranks[: len(self.ranks) - self.ranked], self.ranks[len(self.ranks) - self.ranked :]
        if any(self.cascade.rank(r).is_sequence for r in rows):
            ranks = (replace(r, kind="feature") if r.name in candidates and r.is_sequence else r for r in self.cascade.ranks)
            yield replace(self, cascade=replace(self.cascade, ranks=tuple(ranks)))

    @property
    def where(self) -> Expr | None:
        """The condition of the points that exist, where coordinates, sizes and numbers tell it."""
        found = next((x for x in self.cascade.body if x.target == self.exists), None)
        if found is None or found.map.op != "select" or ex.reads(found.map.args[0]) - self._numbers:
            return None
        return found.map.args[0]

    @property
    def computed(self) -> Flat:
        """What kernels compute of the cascade: not which points exist, where that is told without them."""
        return self.cascade if self.where is None else prune(replace(self.cascade, outs=(self.value,)))

    @property
    def _numbers(self) -> set[str]:
        return {t.name for t in self.cascade.inputs if t.param}


@dataclass(frozen=True, slots=True)
class Table:
    """A table of truth values: which of the numbers 0 .. ``span`` - 1 the last axis of the list ``source`` holds.

    The span is an expression of sizes, or the name of one that the largest entry tells. A list has so many ``slots``.
    ``most`` is an expression of sizes that the span is not above, where there is one. ``paired``: it has an entry for every pair of a row and a
    column, so that a look for dead tiles would take as long as to read it.
    """

    name: str
    source: str
    span: Expr | str
    most: Expr | None
    slots: Expr
    paired: bool


Step = Scores | Table


@dataclass(frozen=True, slots=True)
class Chosen:
    """The steps in order, each of which makes one tensor, and the cascade that reads them and gives all outputs but lists."""

    steps: tuple[Step, ...]
    rest: Flat

    @property
    def listed(self) -> Flat | None:
        """The rest with lists in place of their tables; None where it reads none that has a span without its entries."""
        tables = {x.name: x for x in self.steps if isinstance(x, Table)}
        mine = [tables[t.name] for t in self.rest.inputs if t.name in tables]
        if not mine or any(x.most is None for x in mine):
            return None
        spans = {ex.size(x.span): x.most for x in mine if isinstance(x.span, str)}

        def whole(e: Expr) -> Expr:
            return ex.substitute(e, spans.get)

        inputs = (
            replace(t, listed=tables[t.name].slots, axes=tuple(map(whole, t.axes))) if t.name in tables else t
            for t in self.rest.inputs
        )
        return replace(map_expressions(self.rest, whole), inputs=tuple(inputs))


def chooses(c: Cascade) -> bool:
    """Are some coordinates of the cascade data that it makes, or looks into?"""
    return any(x.reducer.chooses for x in statements(c)) or bool(lists(c))


def run(cascade: Cascade) -> Chosen | None:
    """None for a cascade that chooses nothing. Raises SpecError for a scan."""
    if not chooses(cascade):
        return None
    refused = "a scan and a choice of coordinates cannot stand in one attention yet"
    return _Cut(inferred(flat(cascade, refused, "make two of them"))).run()


class _Cut:
    def __init__(self, c: Flat) -> None:
        self.c = c
        self.taken = taken(c)
        self.types = types_of(c)
        self.made: dict[str, tuple[str, ...]] = {}
        self.ranked: dict[str, tuple[str, ...]] = {}
        self.tables: dict[tuple[str, Expr | None], Table] = {}
        self.steps: list[Step] = []

    def run(self) -> Chosen:
        looked_into = lists(self.c)
        for x in self.c.body:
            if x.reducer.chooses:
                self._list(x, x.ranks[:-1] if x.reducer.slots else x.ranks, x.over)
            elif x.target in looked_into:
                self._list(x, x.ranks, ())
        values = tuple(n for n in self.c.outs if n not in self.made)
        if not values:
            raise SpecError(
                f"{self.c.name} gives lists alone, and no kernel makes one yet",
                self.c.loc,
                f"let it give a value too, such as what is ranked at the slots of `{self.c.outs[0]}`",
            )
        rest = self._apart(self._part((), values, self.c.name, self.made))  # which makes tables too
        read = {t.name for x in self.steps if isinstance(x, Scores) for t in x.cascade.inputs}
        return Chosen(
            tuple(replace(x, kept=None) if isinstance(x, Scores) and x.kept not in read else x for x in self.steps), rest
        )

    def _apart(self, rest: Flat) -> Flat:
        """The rest with ranks that it holds as ambient ones where each of their points is a problem of its own and reads the same lists."""
        lists = {*self.made, *(t.name for t in self.tables.values())}
        listed = [e for x in statements(rest) for y in x.expressions for e in ex.walk(y) if e.op == "load" and e.name in lists]
        for r in rest.ranks:
            if not r.is_sequence and not any(r.name in ex.indices(e) for e in listed):
                cut = lift.run(rest, r.name)
                rest = cut[0] if cut is not None and len(cut) == 1 else rest
        return rest

    def _list(self, x: Einsum, ranks: tuple[str, ...], over: tuple[str, ...]) -> None:
        """The step of a choice, or of a statement that is a list."""
        value = Einsum(fresh(f"{x.target}_value", self.taken), (*ranks, *over), None, (), x.map, x.mask, x.loc)
        more, exists = [value], None
        if x.mask is not None:
            exists = Einsum(
                fresh(f"{x.target}_exists", self.taken),
                value.ranks,
                None,
                (),
                ex.call("select", x.mask, ex.const(1.0), ex.const(0.0)),
            )
            more.append(exists)
        whole = ex.scalar_type(x.map, self.types.__getitem__) == "int"
        slots = ex.size(self.c.rank(x.ranks[-1]).size) if x.reducer.slots else None
        part = self._part(more, tuple(y.target for y in more), f"{self.c.name}_{x.target}", self.made | self.ranked)
        name = exists.target if exists is not None else None
        same = (y.target for y in statements(self.c) if ex.at(y.target, y.ranks) == x.map and y.ranks == value.ranks)
        kept = None if whole else next(same, None)
        self.steps.append(Scores(part, x.target, value.target, name, len(over), slots, whole, kept))
        self.made[x.target] = self.c.over
        if kept is not None:
            self.ranked[kept] = self.c.over

    def _part(self, more: Sequence[Einsum], outs: tuple[str, ...], name: str, made: Mapping[str, tuple[str, ...]]) -> Flat:
        """What outputs need of the cascade and of ``more`` statements, with what was ``made`` before and tables as inputs."""
        kept = [x for x in self.c.body if not x.reducer.chooses or x.target in self.made]
        c = reading(replace(self.c, body=(*kept, *more)), made, outs, name)
        c = map_expressions(c, lambda e: ex.substitute(e, lambda y: self._looked_up(y, c)))
        c = _filled_in(c, self.types)
        used = {n for x in statements(c) for e in x.expressions for n in ex.reads(e)}
        tables = {t.name: t for t in self.tables.values() if t.name in used}
        inputs = (*(t for t in c.inputs if t.name in used), *(self._tensor(t) for t in tables.values()))
        return stages.complete(replace(c, inputs=inputs), self.c)

    def _looked_up(self, e: Expr, c: Flat) -> Expr | None:
        """``element in list[prefix]`` as a read of the list's table."""
        if e.op != "in":
            return None
        element, *prefix = (ex.substitute(a, lambda y: self._looked_up(y, c)) for a in e.args)
        span = span_of(element, self.c)
        key = (e.name, span)
        if key not in self.tables:
            size = fresh(f"{e.name}_span", self.taken) if span is None else span
            sequences = {ex.index(r.name) for r in self.c.ranks if r.is_sequence}
            self.tables[key] = Table(
                fresh(f"{e.name}_has", self.taken),
                e.name,
                size,
                most_of(element, self.c),
                self._slots(e.name),
                element in sequences and not sequences.isdisjoint(prefix),
            )
            self.steps.append(self.tables[key])
        table = self.tables[key]
        read = ex.load(table.name, *prefix, element)
        below = ex.call("<", element, ex.size(table.span)) if isinstance(table.span, str) else None
        above = None if not_negative(element) else ex.call(">=", element, ex.ZERO)
        return ex.conjunction(above, below, read)

    def _slots(self, name: str) -> Expr:
        """The number of slots of a list."""
        for x in self.c.body:
            if x.target == name:
                return ex.size(self.c.rank(x.ranks[-1]).size)
        return self.c.input(name).axes[-1]

    def _tensor(self, table: Table) -> Tensor:
        last = ex.size(table.span) if isinstance(table.span, str) else table.span
        if table.source not in self.made:
            return Tensor(table.name, (*self.c.input(table.source).axes[:-1], last), "bool", made=table.paired)
        x = next(x for x in self.c.body if x.target == table.source)
        axes = (ex.size(self.c.rank(r).size) for r in (*self.c.over, *x.ranks[:-1]))
        return Tensor(table.name, (*axes, last), "bool", made=table.paired)


def _filled_in(c: Flat, types: Mapping[str, DType]) -> Flat:
    """Ints and truth values that are made of lists, written out where they are read, so that masks and indices show what they are of.

    Where such a statement exists is part of the mask of its readers by now.
    """
    filled = Definitions()
    body: list[Einsum] = []
    for x in c.body:
        x = replace(x, map=filled.into(x.map), mask=None if x.mask is None else filled.into(x.mask))
        plain = not any(types.get(n, "bool") == "float" for n in ex.reads(x.map))
        if x.red is None and plain and types.get(x.target) in ("int", "bool") and x.target not in c.outs:
            filled.add(x)
        else:
            body.append(x)
    return replace(c, body=tuple(body))
