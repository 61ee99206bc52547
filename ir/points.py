"""The meaning of a cascade as written, in plain Python, one point at a time: for small sizes, where there is no torch.

`ir.interpreter` says what a cascade means; this says the same, statement by statement, and the tests compare the two. A value is computed
when it is first read and then kept, so that an equation in its own rows and a scan need no order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Scalar, State
from einfuse.ir.reducers import MISSING
from einfuse.ir.rewrite import lists
from einfuse.ir.spaces import inferred
from einfuse.ir.statements import equation

Values = Scalar | Sequence["Values"]
"""A tensor as lists in lists, or a number."""
Read = Callable[[Expr], Scalar]
"""What a load means at a point."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A statement, and the scan that it is a line of."""

    x: Einsum | State
    scan: Fold | None = None
    number: int = 0


class Points:
    """The values of a cascade that no pass has fused. ``inputs`` are by name; of a listed one the truth values, not the list."""

    def __init__(self, cascade: Cascade, inputs: Mapping[str, Values], sizes: Mapping[str, int]) -> None:
        self.cascade, self.sizes = inferred(cascade), sizes
        defaults = {t.name: t.default for t in cascade.inputs if t.default is not None}
        self.inputs: Mapping[str, Values] = {**defaults, **inputs}
        self.floats = {t.name for t in cascade.inputs if t.dtype == "float"}
        self.extent = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in cascade.ranks}
        self.lists = lists(cascade)
        self.lines: dict[str, _Line] = {}
        for e in self.cascade.einsums:
            self.lines[e.target] = _Line(e)
        for x in self.cascade.folds:
            assert x.sequential, "a pass has fused this cascade"
            assert x.step == 0, "a pass has put this scan into blocks"
            for n, y in enumerate(x.body):
                self.lines[y.target] = _Line(y, x, n)
        self.known: dict[tuple[str, tuple[int, ...], int], Scalar] = {}
        self.chosen: dict[tuple[str, tuple[int, ...]], list[int]] = {}

    def output(self, name: str, at: tuple[int, ...] | None = None) -> Values:
        """A statement at an ambient point (the first one unless told), at the coordinates of its own ranks."""
        ranks = self.lines[name].x.ranks
        ambient = dict(zip(self.cascade.over, at or (0,) * len(self.cascade.over), strict=True))

        def over(left: Sequence[str], point: dict[str, int]) -> Values:
            if not left:
                value = self.value(name, tuple(point[r] for r in ranks), ambient)
                return max(value, -1) if name in self.lists or self.lines[name].x.reducer.chooses else value
            return [over(left[1:], {**point, left[0]: n}) for n in range(self.extent[left[0]])]

        return over(ranks, {})

    def value(self, name: str, at: tuple[int, ...], ambient: Mapping[str, int], time: int | None = None) -> Scalar:
        """A statement at one point; ``time`` is the point of its scan, the last one unless told."""
        line = self.lines[name]
        point = {**ambient, **dict(zip(line.x.ranks, at, strict=True))}
        if line.scan is not None:
            rank = line.scan.rank
            time = point.get(rank, self._last(line.scan) if time is None else time)
            point[rank] = time
        key = name, (*(ambient[r] for r in self.cascade.over), *at), -1 if time is None or line.scan is None else time
        if key not in self.known:
            self.known[key] = self._state(line, point) if isinstance(line.x, State) else self._einsum(line, line.x, point)
        return self.known[key]

    # -- statements ----------------------------------------------------------------------------------------------------------------

    def _einsum(self, line: _Line, x: Einsum, point: dict[str, int]) -> Scalar:
        if x.reducer.chooses:
            return self._choice(line, x, point)
        if x.reducer.solves:
            base, share = equation(x)
            parts = [float(self._at(share, line, p)) for p in self._live(line, x, point)]
            return float(self._at(base, line, point)) + sum(parts)
        if x.red is None:
            live = x.mask is None or bool(self._at(x.mask, line, point))
            return self._at(x.map, line, point) if live else MISSING if x.target in self.lists else 0
        values = [self._at(x.map, line, p) for p in self._live(line, x, point)]
        total: Scalar = x.reducer.identity
        for n, v in enumerate(float(v) if x.reducer.sums else v for v in values):
            total = v if n == 0 else applied(x.reducer.step("bool" if isinstance(v, bool) else "float"), total, v)
        return total

    def _live(self, line: _Line, x: Einsum, point: dict[str, int]) -> Iterator[dict[str, int]]:
        """The points of a reduction that exist."""
        for at in itertools.product(*(range(self.extent[r]) for r in x.over)):
            here = {**point, **dict(zip(x.over, at, strict=True))}
            if x.mask is None or self._at(x.mask, line, here):
                yield here

    def _choice(self, line: _Line, x: Einsum, point: dict[str, int]) -> Scalar:
        """The coordinate in a slot: the largest value first, equal ones by coordinate, NaN behind every number."""
        rows = x.ranks[:-1] if x.reducer.slots else x.ranks
        row = x.target, tuple(point[r] for r in (*self.cascade.over, *rows))
        if row not in self.chosen:
            found = []
            for here in self._live(line, x, point):
                value, number = float(self._at(x.map, line, here)), 0
                for r in x.over:
                    number = number * self.extent[r] + here[r]
                found.append((math.isnan(value), -value if not math.isnan(value) else 0.0, number))
            self.chosen[row] = [number for *_, number in sorted(found)]
        slot = point[x.ranks[-1]] if x.reducer.slots else 0
        return self.chosen[row][slot] if slot < len(self.chosen[row]) else MISSING

    def _state(self, line: _Line, point: dict[str, int]) -> Scalar:
        """A state after a point of its scan; before the first one it is what it starts from."""
        assert isinstance(line.x, State), "a state is a line of a scan"
        assert line.scan is not None, "a state is a line of a scan"
        if 0 <= point[line.scan.rank] < self.extent[line.scan.rank]:
            return float(self._at(line.x.map, line, point))
        return 0.0 if line.x.init is None else float(self._at(line.x.init, line, point))

    def _last(self, scan: Fold) -> int:
        return 0 if scan.reverse else self.extent[scan.rank] - 1

    # -- expressions ---------------------------------------------------------------------------------------------------------------

    def _at(self, e: Expr, line: _Line, point: Mapping[str, int]) -> Scalar:
        match e.op:
            case "const":
                return e.value  # type: ignore[return-value]  # a constant is a number
            case "index":
                return point[e.name]
            case "size":
                return self.sizes[e.name]
            case "load":
                return self._load(e, line, point)
            case "in":
                return self._member(e, line, point)
            case "select":  # a branch that is not taken may divide by 0
                return self._at(e.args[1 if self._at(e.args[0], line, point) else 2], line, point)
        return applied(e.op, *(self._at(a, line, point) for a in e.args))

    def _load(self, e: Expr, line: _Line, point: Mapping[str, int]) -> Scalar:
        index = [int(self._at(a, line, point)) for a in e.args]
        if e.name in self.lines:
            read = self.lines[e.name]
            at = tuple(_inside(k, self.extent[r]) for k, r in zip(index, read.x.ranks, strict=True))
            return self.value(e.name, at, self._ambient(point), self._time(read, line, point))
        found = self.inputs[e.name]
        for k in index:
            assert isinstance(found, Sequence), f"{e.name} has an axis for every index"
            found = found[_inside(k, len(found))]
        assert not isinstance(found, Sequence), f"{e.name} has an index for every axis"
        return float(found) if e.name in self.floats else found

    def _time(self, read: _Line, line: _Line, point: Mapping[str, int]) -> int | None:
        """Where in its scan a line is read: a state above its own line as it came from the point before."""
        if read.scan is None or line.scan is not read.scan:
            return None
        now = point[read.scan.rank]
        carried = isinstance(read.x, State) and line.number <= read.number
        return now + (1 if read.scan.reverse else -1) if carried else now

    def _member(self, e: Expr, line: _Line, point: Mapping[str, int]) -> bool:
        element, *prefix = (int(self._at(a, line, point)) for a in e.args)
        if e.name in self.lines:
            slots = range(self.extent[self.lines[e.name].x.ranks[-1]])
            return any(self.value(e.name, (*prefix, n), self._ambient(point)) == element for n in slots)
        found = self.inputs[e.name]
        for k in prefix:
            assert isinstance(found, Sequence), f"{e.name} has an axis for every index"
            found = found[_inside(k, len(found))]
        assert isinstance(found, Sequence), f"{e.name} is a list"
        return element in found

    def _ambient(self, point: Mapping[str, int]) -> dict[str, int]:
        return {r: point[r] for r in self.cascade.over}


def _inside(k: int, n: int) -> int:
    """An index beyond an axis is that of the nearest entry: nothing that exists reads it."""
    return min(max(k, 0), max(n - 1, 0))


def applied(op: str, *args: Scalar) -> Scalar:
    """A function of numbers as floating point has it: infinite or not a number where Python raises."""
    f = FUNCTIONS[op]
    if op in ("max", "min") and any(x != x for x in args):
        return math.nan
    try:
        out = f.fold(*args)
    except OverflowError:
        return math.inf
    except ZeroDivisionError:
        if f.takes == "int":
            raise
        a = float(args[0])
        return (
            math.copysign(math.inf, a) * math.copysign(1, float(args[-1]))
            if op == "/" and a
            else math.nan
            if op == "/"
            else math.inf
        )
    except ValueError:
        return -math.inf if f.pole is not None and args[0] == f.pole else math.nan
    return math.nan if isinstance(out, complex) else out
