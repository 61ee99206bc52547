"""`Blocks`: block operations under construction, in single assignment.

An operation that is there already is not made again, and a new one stands in the outermost region that knows what it reads: what does
not change in a loop leaves it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from einfuse.codegen import plan as kp
from einfuse.codegen.plan import FUNCTIONS, Value
from einfuse.ir import DType, Scalar
from einfuse.ir.rewrite import fresh

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class Defining(DataclassInstance, Protocol):
        """An operation that gives a value: one of `codegen.plan`, or of a plan with operations of its own."""

        @property
        def out(self) -> Value: ...


@dataclass(slots=True)
class Scope:
    """A region under construction: its operations, what they already compute, and the region around it."""

    ops: list[kp.Op] = field(default_factory=list)
    outer: Scope | None = None
    rank: str | None = None  # the folded rank of a loop body
    known: dict[object, Value] = field(default_factory=dict)
    mine: set[str] = field(default_factory=set)  # the values that change from block to block

    def find(self, key: object) -> Value | None:
        found = self.known.get(key)
        return found if found is not None or self.outer is None else self.outer.find(key)

    def home(self, args: tuple[Value, ...], rank: str | None = None) -> Scope:
        """The outermost region in which an operation on ``args`` can stand."""
        if self.outer is None or rank == self.rank or any(a.name in self.mine for a in args):
            return self
        return self.outer.home(args, rank)


@dataclass(slots=True)
class Blocks:
    """Makes operations in the region ``scope``. ``order`` is that of ranks in ``dims``; ``taken`` names are given to no value."""

    order: tuple[str, ...]
    taken: set[str]
    scope: Scope = field(default_factory=Scope)
    siblings: set[str] = field(default_factory=set)  # names that the other phase of the fold in hand defines
    _literals: dict[str, Scalar] = field(default_factory=dict)  # the constants by value name
    _extrema: set[str] = field(default_factory=set)  # the largest and smallest of something, row by row

    @contextmanager
    def inside(self, scope: Scope) -> Iterator[None]:
        """Operations are made in ``scope`` for a while."""
        outer, self.scope = self.scope, scope
        yield
        self.scope = outer

    def fresh(self, base: str) -> str:
        return fresh(base, self.taken)

    def dims(self, ranks: Collection[str]) -> tuple[str, ...]:
        """Ranks in their order, less those of which a program has only one coordinate."""
        return tuple(r for r in self.order if r in ranks)

    def spanned(self, args: tuple[Value, ...]) -> tuple[str, ...]:
        """The ranks that any of the values spans."""
        return self.dims({d for a in args for d in a.dims})

    def other(self, v: Value, rank: str) -> int:
        """Where in the order the first rank of ``v`` beside ``rank`` stands."""
        return self.order.index(next(d for d in v.dims if d != rank))

    def emit(self, op: Defining, args: tuple[Value, ...], rank: str | None = None) -> Value:
        """The value of an operation on ``args``: of the one that exists, or of this one, named after its ``out``. What is said of the
        coordinates of ``rank`` stays in the loop along it."""
        key = _identity(op)
        found = self.scope.find(key)
        if found is not None:
            return found
        home = self.scope.home(args, rank)
        name = self.fresh(op.out.name)
        while home.rank is None and name in self.siblings:  # what is hoisted is alive in the other phase as well
            name = self.fresh(op.out.name)
        out = replace(op.out, name=name)
        home.ops.append(replace(op, out=out))  # type: ignore[arg-type]  # or an operation of another plan
        home.known[key] = out
        if home.rank is not None:
            home.mine.add(out.name)
        return out

    # -- arithmetic at every point -----------------------------------------------------------------------------------------------

    def const(self, value: Scalar) -> Value:
        dtype: DType = "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float"
        out = self.emit(kp.Const(Value("c", (), dtype), value), ())
        self._literals[out.name] = value
        return out

    def map(self, fn: str, *args: Value, name: str = "t") -> Value:
        if fn == "stop":  # there are no derivatives of kernels
            return args[0]
        args = self._converted(fn, args)
        dtype = FUNCTIONS[fn].gives([a.dtype for a in FUNCTIONS[fn].values(args)])
        if fn == "/" and set(args[1].dims) < set(args[0].dims) and args[1].name not in self._extrema:
            # one reciprocal a row instead of a division an element, but not by a largest value: where that stands, the quotient is 1
            return self.map("*", args[0], self.map("/", self.const(1.0), args[1]), name=name)
        dims = self.spanned(args)
        out = self.emit(kp.Map(Value(name, dims, dtype), fn, args, name != "t"), args)
        if dims and self._is_extreme(fn, args):
            self._extrema.add(out.name)
        return out

    def _is_extreme(self, fn: str, args: Sequence[Value]) -> bool:
        """Whether the result is the largest or smallest of something; ``max(l, 0.5)`` is not, where l is none."""
        known = [a.name in self._extrema for a in args]
        if fn in ("max", "min"):
            return any(known) or not any(a.name in self._literals for a in args)
        return fn == "copy" and known[0]

    def as_float(self, a: Value) -> Value:
        if a.dtype == "float":
            return a
        if a.name in self._literals:
            return self.const(float(self._literals[a.name]))
        return self.map("float", a)

    def _converted(self, fn: str, args: tuple[Value, ...]) -> tuple[Value, ...]:
        """Ints become floats where the function computes in floats."""
        f = FUNCTIONS[fn]
        mine = f.values(args)
        types = [a.dtype for a in mine]
        if f.computes_in(types) is None or not (f.special or "float" in types):
            return args
        return (*args[: len(args) - len(mine)], *(self.as_float(a) for a in mine))

    def product(self, values: list[Value]) -> Value:
        out = values[0]
        for v in values[1:]:
            out = self.map("*", out, v)
        return self.as_float(out)

    def masked(self, value: Value, mask: Value | None, identity: float) -> Value:
        """The value where the mask holds, the identity elsewhere; 0 is of the value's type."""
        if mask is None:
            return value
        zero = {"float": 0.0, "int": 0, "bool": False}[value.dtype]
        return self.map("select", mask, value, self.const(identity if identity else zero))

    def finite(self, v: Value) -> Value:
        """The value, or 0 where it is no number that a difference can be taken from."""
        return self.map("select", self.is_finite(v), v, self.const(0.0))

    def is_finite(self, v: Value) -> Value:
        """Whether the value is neither infinite nor NaN.

        v - v == 0 would say the same of a v that is rounded. A compiler that fuses a product with the sum that reads it does not round it:
        a * b - a * b is then the error of the rounding.
        """
        return self.map("<", self.map("abs", v), self.const(math.inf))

    def unlike(self, v: Value, identity: float) -> Value:
        """The value, or 0 where it is the identity."""
        out = self.map("select", self.map("==", v, self.const(identity)), self.const(0.0), v)
        if v.name in self._extrema:
            self._extrema.add(out.name)
        return out

    # -- from some ranks to others -----------------------------------------------------------------------------------------------

    def coordinate(self, rank: str) -> Value:
        return self.emit(kp.Coordinate(Value(f"{rank}_at", self.dims((rank,)), "int"), rank), (), rank)

    def broadcast(self, value: Value, ranks: Collection[str], name: str) -> Value:
        """The value at every coordinate of ranks it does not depend on."""
        for r in self.dims(ranks):
            zero = self.map("*", self.coordinate(r), self.const(0))
            value = self.map("+", value, zero, name=name) if value.dtype != "bool" else value
        return value

    def reduce(self, red: str, value: Value, rank: str, name: str) -> Value:
        if rank not in value.dims:  # constant along the rank
            value = self.broadcast(value, {rank}, name)
        dims = tuple(d for d in value.dims if d != rank)
        return self.emit(kp.Reduce(Value(name, dims, value.dtype), red, value, rank), (value,))

    def some(self, value: Value, rank: str, name: str, instead: Value | None, enough: tuple[int | str, int | str]) -> Value:
        """Whether a condition holds at any point of the rank, or ``instead`` (see `kp.Reduce`)."""
        if instead is None or rank not in value.dims:
            return self.reduce("any", value, rank, name)
        dims = tuple(d for d in value.dims if d != rank)
        op = kp.Reduce(Value(name, dims, "bool"), "any", value, rank, instead, enough)
        return self.emit(op, kp.reads(op))

    def dot(
        self,
        a: Value,
        b: Value,
        rank: str,
        name: str,
        acc: Value | None = None,
        where: Value | None = None,
        narrow: bool = True,
    ) -> Value:
        """The matrix product over ``rank``, added to ``acc``; see `codegen.plan.Dot` for ``where`` and ``narrow``."""
        assert a.dtype == b.dtype == "float", "operands of a product are floats"
        dims = tuple(d for d in self.spanned((a, b)) if d != rank)
        op = kp.Dot(Value(name, dims, "float"), a, b, rank, acc, narrow, where)
        return self.emit(op, kp.reads(op))


def _identity(op: Defining) -> object:
    """What two operations have in common that compute the same, whatever their names."""
    match op:
        case kp.Const(out=out, value=value):
            return ("const", out.dtype, repr(value))  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        case kp.Map(fn=fn, args=args):
            return (fn, *args)
    return replace(op, out=replace(op.out, name=""))
