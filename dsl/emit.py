"""The statements of a cascade under construction: fresh names, and equal ones made only once."""

from __future__ import annotations

import dataclasses
import re

from einfuse.dsl.names import Held
from einfuse.dsl.values import Value, coordinate, merged, moved, read
from einfuse.ir import Einsum, Expr, Fold, Span, SpecError, State, conjunction
from einfuse.ir.expr import factors, indices
from einfuse.ir.spaces import exists

MAX_STATEMENTS = 1_000
MAX_OPERATIONS_IN_ALL = 1_000_000
MAX_STEPS = 200_000
"""Bounds on the work that a text of a stranger can cause."""


class Emitter:
    """Collects statements in order of dependency."""

    def __init__(self, taken: set[str], order: dict[str, int]) -> None:
        self.taken, self.order = taken, order
        self.body: list[Einsum | State | Fold] = []
        self._known: dict[str, Held] = {}  # unnamed statements by their contents
        self._counters: dict[str, int] = {}
        self._named: set[str] = set()  # the targets that the user chose
        self._held: dict[str, Held] = {}
        self._operations = self._steps = 0

    def step(self, loc: Span | None) -> None:
        """Counts one evaluation. Raises SpecError where there are too many."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise SpecError(
                "the definitions of this text make too much work", loc, "fewer calls inside calls, or statements for results"
            )

    def sorted(self, ranks: frozenset[str] | set[str]) -> tuple[str, ...]:
        """Ranks in order of declaration."""
        return tuple(sorted(ranks, key=self.order.__getitem__))

    def fresh(self, hint: str) -> str:
        """``hint``, or ``hint_1``, ... if it is taken."""
        hint = re.sub(r"\W", "_", hint)
        name, n = hint, self._counters.get(hint, 0)
        while name in self.taken:
            n += 1
            name = f"{hint}_{n}"
        self._counters[hint] = n
        self.taken.add(name)
        return name

    def named(self, statement: Einsum, value: Value) -> Held:
        """A statement under the name that the attention's author chose."""
        self._named.add(statement.target)
        return self._append(statement, value)

    def unnamed(self, statement: Einsum, value: Value) -> Held:
        """A statement whose name (a hint) is ours to choose; one with the same contents is not made again."""
        key = repr(dataclasses.replace(statement, target=""))
        held = self._known.get(key)
        if held is None:
            statement = dataclasses.replace(statement, target=self.fresh(statement.target))
            held = self._known[key] = self._append(statement, value)
        return held

    def repeated(self, value: Value, ranks: tuple[str, ...]) -> Held | None:
        """The statement over ``ranks`` that ``value`` is nothing but a read of."""
        held = self._held.get(value.expr.name) if value.expr.op == "load" else None
        same = held is not None and held.ranks == ranks and value.expr == load_held(held).expr
        return held if same else None

    def adopt(self, value: Value, since: int, conditional: bool) -> Einsum | None:
        """Takes back the last statement if it is unnamed, made after the first ``since`` ones (so that nobody else can read it), and
        ``value`` is exactly its value: the reader becomes it. A ``conditional`` reader takes some slots of a list, and is none itself."""
        last = self.body[-1] if len(self.body) > since else None
        if (
            not isinstance(last, Einsum)
            or last.target in self._named
            or value.expr.op != "load"
            or value.expr.value != last.target
            or (conditional and last.reducer.chooses)
        ):
            return None
        if [a.value if a.op == "index" else None for a in value.expr.args] != list(last.ranks):
            return None
        self.body.pop()
        self._known.pop(repr(dataclasses.replace(last, target="")), None)
        self.taken.discard(last.target)
        return last

    def state(self, statement: State) -> None:
        """A state's line: what was read before it is another value from here on."""
        self.body.append(statement)
        self._known.clear()

    def scanned(self, rank: str, since: int, loc: Span | None) -> None:
        """Makes the statements after the first ``since`` ones the body of a scan over ``rank``."""
        body = tuple(y for x in self.body[since:] for y in x.lines)  # the grammar nests no scans
        self.body[since:] = [Fold(rank, body, loc=loc)]
        self._known.clear()

    def _append(self, statement: Einsum, value: Value) -> Held:
        if len(self.body) >= MAX_STATEMENTS:
            raise SpecError(
                f"the cascade has more than {MAX_STATEMENTS:,} statements once definitions are filled in",
                statement.loc,
                "repeat fewer steps, or call fewer definitions",
            )
        self._operations += value.expr.operations
        if self._operations > MAX_OPERATIONS_IN_ALL:
            raise SpecError(
                "the cascade is too large once its definitions are filled in",
                statement.loc,
                "repeat fewer steps, or call fewer definitions",
            )
        self.body.append(statement)
        held = self._held[statement.target] = _held(statement, value)
        return held


def reduction_name(red: str, value: Value, target: str) -> str:
    """A name for an unnamed reduction: ``qk`` for a product of q and k, ``p_sum`` for a sum of p, else after the target."""
    parts = factors(value.expr)
    if all(p.op == "load" for p in parts):
        word = "".join(p.name for p in parts)
        if len(parts) == 1:
            return f"{word}_{red}"
        if len(word) <= 8 and red == "sum":
            return word
    return f"{target}_{red}"


def load_held(held: Held, args: tuple[Value, ...] | None = None) -> Value:
    """A statement read at its own coordinates, or at ``args``."""
    at = tuple(map(coordinate, held.ranks)) if args is None else args
    value = read(held.name, held.dtype, at, moved(held.space, held.ranks, at))
    return value if held.along is None else dataclasses.replace(value, ranks=value.ranks | {held.along})


def _held(statement: Einsum, value: Value) -> Held:
    gone = set(statement.over)
    if statement.reducer.chooses:
        return Held(statement.target, statement.ranks, statement.reducer.gives(value.dtype), (exists(statement),))
    space = (*value.space, *((statement.mask,) if statement.mask is not None else ()))
    kept = tuple(p for p in merged(space) if not indices(p) & gone)
    return Held(statement.target, statement.ranks, statement.reducer.gives(value.dtype), kept)


def mask_of(where: Value | None, value: Value) -> Expr | None:
    """The mask of a statement: its condition, the spaces of what the condition reads, and those that folding lost of the value."""
    conditions = (where.expr, *where.space) if where is not None else ()
    return conjunction(*conditions, *value.lost)
