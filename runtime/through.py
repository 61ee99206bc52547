"""Programs whose loops lists drive (`ir.passes.through`): a block of keys is read by the queries that list it, and by no others.

    list  ->  [rows by turns]  ->  i_at, j_at         ->  [listed]  ->  states of rows  ->  [finalise]  ->  o
    list  ->  [group rows]     ->  i_at, j_at, place  ->  [listed]  ->  parts           ->  [merged]    ->  o          for a window of rows
    list  ->  [list rows]      ->  rows of each block ->  [listed]  ->  d_k, d_v

Where a back end lets points take turns, a lane of rows goes from block to block, and the rows that list a block bring their states on by it:
states stay in a cache, and nothing is put together afterwards. Elsewhere all pairs of a row and a block are computed at once, as parts.
The shapes of all lists follow from those of the arguments: rows are as many as slots allow, and a group of rows is padded. So a graph
serves every call of its shapes, and no size is read back from a device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from einfuse.ir import Cascade, SpecError
from einfuse.ir.expr import index, reads, size
from einfuse.ir.passes import inverse, lift, routed, split, through
from einfuse.ir.ranking import members
from einfuse.runtime import cache, own_lists, routing
from einfuse.runtime.backends import Backend
from einfuse.runtime.binding import evaluate, extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Host, Node, Part, Tensors, room
from einfuse.runtime.lists import CHUNK, TILE, TURN, Lists, short
from einfuse.runtime.outputs import Output, accumulation
from einfuse.runtime.program import Mode, Program
from einfuse.runtime.recent import Recent
from einfuse.runtime.routing import described_table, flattened, of_rows, tables_of, unblocked
from einfuse.runtime.tiles import NARROWEST

MOST = 1 << 24
"""Numbers that the parts of a window may hold: few enough that the merge finds them in a cache, or at least in memory."""
PAYS = 1.5
"""Columns for each one that a row lists from which on lists pay."""


def drives(cascade: Cascade) -> bool:
    """Does a call give some tables of the cascade as lists?"""
    return any(t.listed is not None for t in cascade.inputs)


def routes_apart(cascade: Cascade) -> tuple[Cascade, ...] | None:
    """The cascades of one whose lists route a rank that it holds: what needs all points of the rank, then the rest (`ir.passes.lift`)."""
    plain = tabled(cascade)
    for t in cascade.inputs:
        if t.listed is None:
            continue
        held = {e.args[-1].name for e in through.reads(cascade, t.name) if e.args[-1].op == "index"} - {*cascade.over}
        for rank in (r.name for r in cascade.ranks if r.name in held):  # in one order in every process
            cut = lift.run(plain, rank)
            if cut is not None and routed.find(cut[-1], t.name) is not None:
                known = {x.name: x for x in cascade.inputs}
                return tuple(replace(c, inputs=tuple(known.get(x.name, x) for x in c.inputs)) for c in cut)
    return None


def tabled(cascade: Cascade) -> Cascade:
    """The cascade with tables in place of lists."""
    return replace(cascade, inputs=tuple(replace(t, listed=None) for t in cascade.inputs))


@dataclass
class ListedProgram(Program):
    """A program with lists in place of tables. ``driving`` goes through them; ``tabled`` makes the tables, where none can be gone through."""

    tabled: Program = field(init=False)
    driving: Driving | None = field(init=False)
    modes: Recent[tuple[object, ...], Mode] = field(default_factory=Recent)
    exact: ClassVar[bool] = True  # windows are as many as rows take

    def __post_init__(self) -> None:
        super().__post_init__()
        listed = [t.name for t in self.cascade.inputs if t.listed is not None]
        plain = tabled(self.cascade)
        self.tabled = Program(plain, self.strict, self.wide)
        self.driving = Driving(plain, self.strict, self.wide, table=listed[0]) if len(listed) == 1 else None

    def mode(self, given: Given) -> Mode:
        """By lists where they are less work than tables. Lists of single rows are, unless they hold most of the columns.

        Where many rows share a list, tiles that no row of them reads are skipped by tables as well, without parts to put together.
        """
        if self.driving is None:
            return Mode(False, "there are several lists")
        slots = given.tensors[self.driving.table].shape[-1]
        return self.modes.made((slots, given.key), lambda: self._mode(slots, given))

    def _mode(self, slots: int, given: Given) -> Mode:
        assert self.driving is not None, "there is one list"
        obstacle = self.driving.obstacle((self.driving.cascade,), given)
        if obstacle is not None:
            return Mode(False, obstacle)
        routes = self.driving.routes(self.driving.cascade)
        if routes is not None:
            return _less(slots, extent_of(routes.cascade, routes.chosen, given.sizes), routes.chosen)
        found = self.driving.found(self.driving.cascade, given)
        assert found is not None, "it fits"
        if not any(e == index(found.rows) for e in found.atom.args[:-1]):
            return Mode(False, f"points of {found.rows} share a list, and tables skip the tiles that none of them reads")
        return _less(slots * found.width, extent_of(found.cascade, found.columns, given.sizes), found.columns)

    def check_ranges(self, given: Given) -> None:
        """See `Program.check_ranges`."""
        if self.tabled.guard.groups:
            self.tabled.guard(given.more(self._shapes(given)), functools.cache(lambda: self._tabled(given)))

    def kept(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        return self.tabled.kept(wanted)

    def gives(self, given: Given, wanted: tuple[str, ...] = ()) -> dict[str, Output]:
        return self.tabled.gives(given, wanted)

    def graph(self, given: Given, backend: Backend, wanted: tuple[str, ...] = ()) -> Graph:
        """The forward, by lists or by tables."""
        if self.driving is not None and self.driving.obstacle((self.driving.saving(wanted),), given) is None:
            return self.driving.graph(given, backend, wanted)
        return self._by_tables(given, self.tabled.graph(self._described(given), backend, wanted))

    def backward_graph(self, known: Given, backend: Backend, wanted: tuple[str, ...]) -> Graph:
        """The backward, by lists or by tables."""
        if self.driving is not None:
            steps = self.driving.steps(wanted, backend)
            whole = not any(self.driving.gradients.pairs(step) for step in steps)
            listed = [c for c, _ in steps if not _of_rows(c)]
            if whole and any(self.driving.obstacle((c,), known) is None for c in listed):
                return self.driving.backward_graph(known, backend, wanted)
        return self._by_tables(known, self.tabled.backward_graph(self._described(known), backend, wanted))

    def _by_tables(self, given: Given, inner: Graph) -> Graph:
        spans = self._spans(given)
        names = {n: f"table of {n}" for n in spans}
        takes = {n: names.get(n, n) for n in given.tensors}
        nodes: list[Node] = [
            tables_of(names, spans),
            Part(self.cascade.name, inner, takes, inner.outs),
        ]
        return Graph(lambda _: nodes, given, inner.outs)

    def _tabled(self, given: Given) -> Given:
        return given.more({n: members(given.tensors[n], span) for n, span in self._spans(given).items()})

    def _described(self, given: Given) -> Given:
        return given.described().more(self._shapes(given))

    def _shapes(self, given: Given) -> dict[str, torch.Tensor]:
        """The tables without their memory."""
        return {n: described_table(given.tensors[n], span) for n, span in self._spans(given).items()}

    def _spans(self, given: Given) -> dict[str, int]:
        """The last axes of the tables."""
        return {t.name: int(evaluate(t.axes[-1], given.sizes)) for t in self.cascade.inputs if t.listed is not None}


@dataclass
class Driving(Program):
    """Kernels of one program that go through the lists in place of ``table``."""

    table: str = ""
    made: dict[tuple[object, ...], tuple[through.Parts, Program, Program]] = field(default_factory=dict)
    routings: dict[str, routed.Routed | None] = field(default_factory=dict)
    grouped: dict[str, routing.Made | None] = field(default_factory=dict)
    turned: dict[tuple[object, ...], tuple[through.Turns, Program, Program] | None] = field(default_factory=dict)

    @property
    def merges_steps(self) -> bool:
        return False  # the groups of one step are not those of the other

    def obstacle(self, cascades: Sequence[Cascade], given: Given) -> str | None:
        """Why the lists cannot drive the loops of all these cascades; None where they can."""
        return next((o for c in cascades if (o := self._obstacle(c, given)) is not None), None)

    def _obstacle(self, cascade: Cascade, given: Given) -> str | None:
        if all(t.name != self.table for t in cascade.inputs):
            return None
        routes = self.routes(cascade)
        found = self.found(cascade, given) if routes is None else routes
        if found is None:
            return "no block of a rank follows from an entry"
        numbers = {t.name for t in cascade.inputs if t.param}
        if any(reads(e) - numbers for e in found.atom.args[:-1]):
            return "which list a row has does not follow from its place"
        if isinstance(found, routed.Routed):
            lister, sums = found.lister, found.lister == found.columns or self._groups(found) is not None
        else:
            if own_lists.tile(found, given) is not None:
                return None
            if found.width < NARROWEST:
                return f"an entry is {found.width} wide, and products of matrices want {NARROWEST}"
            if found.blocked == found.rows:
                return None
            lister, sums = found.rows, _splits(found.cascade)
        if not sums:
            return "what rows have of their entries cannot be put together"
        rows = extent_of(cascade, lister, given.sizes)
        return None if rows >= CHUNK else f"{rows} points of {lister} are fewer than {CHUNK}"

    def found(self, cascade: Cascade, given: Given) -> through.Listed | None:
        """How a cascade reads the table, where its lists can drive it."""
        ints = {n: x for n, x in given.numbers.items() if isinstance(x, int)}
        return through.find(cascade, self.table, {**given.sizes, **ints})

    def nodes(self, cascade: Cascade, given: Given, backend: Backend, outs: Mapping[str, Output]) -> Sequence[Node]:
        """Any cascade of the program: by the lists where it reads the table."""
        if all(t.name != self.table for t in cascade.inputs):
            return (self.kernel(cascade, given, backend, outs),)
        if _of_rows(cascade) or self._obstacle(cascade, given) is not None:
            return list(routing.by_table(self.table, cascade, self, given, backend, outs))
        if (routes := self.routes(cascade)) is not None:
            if routes.lister == routes.columns:
                return list(routing.by_columns(self.table, routes, self, given, backend, outs))
            made = self._groups(routes)
            assert made is not None, "it was seen to fit"
            return list(routing.by_groups(self.table, routes, made, given, backend, outs))
        found = self.found(cascade, given)
        assert found is not None, "it was seen to fit"
        wide = found.blocked == found.columns and found.width >= NARROWEST
        turning = backend.in_turns and wide and self._turns(found, short(found, given)) is not None
        if not turning and (tile := own_lists.tile(found, given)) is not None:
            return list(own_lists.by_own(self.table, tile, self, backend, outs))
        by = self._by_blocks if found.blocked == found.rows else self._in_turns if turning else self._by_parts
        return list(by(found, Lists.of(found, given, self.table), given, backend, outs))

    def routes(self, cascade: Cascade) -> routed.Routed | None:
        """How a cascade reads the table, where its lists route rows."""
        if cascade.digest not in self.routings:
            self.routings[cascade.digest] = routed.find(cascade, self.table)
        return self.routings[cascade.digest]

    def _groups(self, found: routed.Routed) -> routing.Made | None:
        """The programs of a cascade whose rows are routed; None where some state belongs to no row."""
        key = found.cascade.digest
        if key not in self.grouped:
            try:
                made = routed.run(found, TILE)
            except SpecError:
                self.grouped[key] = None
            else:
                self.grouped[key] = (
                    made,
                    Program(made.cascade, self.strict, wide=True),
                    Program(made.finalise, self.strict, self.wide),
                )
        return self.grouped[key]

    # -- rows that read listed blocks --------------------------------------------------------------------------------------------

    def _by_parts(
        self, found: through.Listed, lists: Lists, given: Given, backend: Backend, outs: Mapping[str, Output]
    ) -> Iterator[Node]:
        c = found.cascade
        key = (c.digest, lists.slots, found.width, lists.short)
        if key not in self.made:
            made = through.parts(found, TILE, CHUNK, lists.slots, lists.short)
            self.made[key] = made, Program(made.partial, self.strict, wide=True), Program(made.merged, self.strict, self.wide)
        made, first, second = self.made[key]
        numbers = {**given.numbers, **split.constants(made.sizes, given.sizes)}
        width = sum(math.prod(x.shape) // TILE for x in self._states(first, made, given, 1).values())
        row = _axes(made.partial, found.rows)
        yield room(outs)
        for n, window in enumerate(lists.windows(max(1, MOST // max(1, lists.slots * width)))):
            groups, chunks = lists.groups(window.rows) * window.points, -(-window.rows // CHUNK) * window.points
            at = {x: f"{x} {n}" for x in made.at.values()}
            of = {x: f"{x} {n}" for x in (*made.of.values(), made.place)}
            yield lists.grouped(window, made, at | of)
            tables = lists.described(made, groups, chunks)
            known = given.more(tables, {made.groups: groups})
            states = self._states(first, made, known, groups)
            own = {x: f"{x} part {n}" for x in states}
            yield first.kernel(made.partial, known, backend, states, at | own)
            held = {made.held[x]: y.described().movedim(row[x], 1).flatten(0, 1) for x, y in states.items()}
            flat = {made.held[x]: f"{made.held[x]} {n}" for x in states}
            yield flattened({own[x]: flat[made.held[x]] for x in states}, {own[x]: row[x] for x in states})
            merging = replace(known.more(held, {made.chunks: chunks, made.pairs: groups * TILE}), numbers=numbers)
            yield second.kernel(made.merged, merging, backend, outs, of | flat, placed=True)

    def _states(self, first: Program, made: through.Parts, given: Given, groups: int) -> dict[str, Output]:
        lists = {n: torch.empty(groups, dtype=torch.int32, device="meta") for n in made.at.values()}
        return first.outputs(made.partial, {**given.tensors, **lists}, {**given.sizes, made.groups: groups})

    # -- rows that go from block to block in turns ---------------------------------------------------------------------------------

    def _turns(self, found: through.Listed, short: bool) -> tuple[through.Turns, Program, Program] | None:
        """The programs of a cascade in turns; None where some state belongs to no row."""
        key = (found.cascade.digest, found.width, short)
        if key not in self.turned:
            try:
                made = through.turns(found, TURN, short)
            except SpecError:
                self.turned[key] = None
            else:
                first, second = (
                    Program(c, self.strict, wide) for c, wide in ((made.cascade, True), (made.finalise, self.wide))
                )
                self.turned[key] = made, first, second
        return self.turned[key]

    def _in_turns(
        self, found: through.Listed, lists: Lists, given: Given, backend: Backend, outs: Mapping[str, Output]
    ) -> Iterator[Node]:
        turning = self._turns(found, lists.short)
        assert turning is not None, "it was asked"
        made, first, second = turning
        wide = accumulation(given.tensors.values())
        axes = {y: first.cascade.input(made.held[y]).axes for y in made.gives}
        row = {y: x.index(size(made.room)) for y, x in axes.items()}
        one = {**given.sizes, made.room: 1}
        each = [math.prod(int(evaluate(a, one)) for a in x[len(lists.over) :]) for x in axes.values()]
        lanes = lists.lanes(2 * sum(each) * wide.itemsize, backend.workers(given.device))
        count, turns, rows = lists.points * lanes, lists.turns(-(-lists.rows // lanes)), lists.rows + lanes
        yield lists.in_turns(lanes, made, functools.partial(backend.by_block, folder=cache.folder() / backend.name))
        sizes = {**given.sizes, made.lanes: count, made.turns: turns, made.room: rows}
        shapes = {y: tuple(int(evaluate(a, sizes)) for a in x) for y, x in axes.items()}
        states = {y: f"state {y}" for y in shapes}

        def begin(tensors: Tensors, call: Given) -> None:
            tensors |= {states[y]: torch.full(shape, made.start[y], dtype=wide) for y, shape in shapes.items()}

        yield Host("states of rows", (), tuple(states.values()), begin)
        lister, *ambient = (found.rows, *lists.over)
        tables: dict[str, tuple[int, ...]] = {made.at[r]: (count,) for r in ambient}
        tables |= {made.at[found.columns]: (count, turns), made.at[lister]: (count, turns, TURN)}
        more = {n: torch.empty(s, dtype=torch.int32, device="meta") for n, s in tables.items()}
        more |= {made.held[y]: torch.empty(s, dtype=wide, device="meta") for y, s in shapes.items()}
        next_ = {made.gives[y]: Output(s, wide) for y, s in shapes.items()}
        names = {made.gives[y]: n for y, n in states.items()} | {made.held[y]: n for y, n in states.items()}
        yield first.kernel(made.cascade, given.more(more, sizes), backend, next_, names, placed=True)
        yield of_rows({states[y]: row[y] for y in shapes}, lists.rows)
        held = {made.held[y]: more[made.held[y]].narrow(row[y], 0, lists.rows) for y in shapes}
        numbers = {**given.numbers, **split.constants(made.sizes, given.sizes)}
        finishing = replace(given.more(held), numbers=numbers)
        yield second.kernel(made.finalise, finishing, backend, outs, {made.held[y]: f"{n} of rows" for y, n in states.items()})

    # -- blocks of rows that are listed -------------------------------------------------------------------------------------------

    def _by_blocks(
        self, found: through.Listed, lists: Lists, given: Given, backend: Backend, outs: Mapping[str, Output]
    ) -> Iterator[Node]:
        made = inverse.run(found, lists.short, backend.dear_masks)
        yield lists.inverted(found, made, given, functools.partial(backend.by_block, folder=cache.folder() / backend.name))
        groups, pairs = lists.points * lists.span, lists.points * lists.rows * lists.slots
        ints = dict.fromkeys((*made.at.values(), made.first, made.count, *made.whole), (groups,)) | {made.columns: (pairs,)}
        tables = {n: torch.empty(s, dtype=torch.int32, device="meta") for n, s in ints.items()}
        known = given.more(tables, {made.groups: groups, made.pairs: pairs})
        row, over = _axes(made.cascade, found.rows), len(lists.over)
        shapes = {n: [groups, *x.shape[over:]] for n, x in outs.items()}
        for n in outs:
            shapes[n][row[n]] = found.width
        blocks = {n: Output(tuple(shapes[n]), x.dtype) for n, x in outs.items()}
        names = {n: f"blocks of {n}" for n in outs}
        yield self.kernel(made.cascade, known, backend, blocks, names)
        yield unblocked(names, {n: x.shape for n, x in outs.items()}, row, over)


def _less(read: int, whole: int, rank: str) -> Mode:
    """By lists where they leave out enough."""
    return Mode(
        PAYS * read <= whole, f"a list names {read} of {whole} points of {rank}, and {1 / PAYS:.2g} of them or less is worth it"
    )


def _splits(cascade: Cascade) -> bool:
    try:
        split.run(cascade)
    except SpecError:
        return False
    return True


def _of_rows(cascade: Cascade) -> bool:
    """Has a cascade no pairs of positions? Then a table is no larger than what the rows of it read beside."""
    return sum(r.is_sequence and r.name not in cascade.over for r in cascade.ranks) < 2


def _axes(cascade: Cascade, rows: str) -> dict[str, int]:
    """The axis of the rows of every output that has them, behind the one axis of groups."""
    bodies = {x.target: x.ranks for x in cascade.einsums}
    return {n: 1 + bodies[n].index(rows) for n in cascade.outs}
