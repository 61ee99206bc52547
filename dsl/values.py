"""Typed values of the elaboration: an IR expression, its type, the ranks it is made of, and the space where it exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from einfuse.ir import FUNCTIONS, MAX_OPERATIONS, DType, Expr, Scalar, Span, SpecError, call, const, index, load, size
from einfuse.ir.expr import conjuncts, rename

MAX_DEPTH = 200
MAX_CONDITIONS = 256
PLAIN_OPERATIONS = 400
"""The largest integer expression that is repeated where it is read instead of being stored."""


@dataclass(frozen=True, slots=True)
class Value:
    """``space`` holds the conditions under which every statement that is read here exists, ``lost`` those of them whose reads folding
    dropped (``0 * s``): the mask has to say them.

    ``ranks`` are those the user wrote, whether or not folding dropped them.
    ``plain`` values are made of coordinates, sizes, numbers and inputs of ints and bools alone.
    """

    expr: Expr
    dtype: DType
    ranks: frozenset[str] = frozenset()
    space: tuple[Expr, ...] = ()
    plain: bool = True
    lost: tuple[Expr, ...] = ()

    @property
    def constant(self) -> Scalar | None:
        """The number or truth value, where it is known at compile time."""
        return self.expr.value if self.expr.op == "const" and not isinstance(self.expr.value, str) else None

    @property
    def cheap(self) -> bool:
        """May it be repeated where it is read? Leaves, and short arithmetic of plain integers and conditions."""
        leaf = self.expr.op in ("load", "const", "index", "size")
        return leaf or (self.plain and self.dtype != "float" and self.expr.operations <= PLAIN_OPERATIONS)

    def at(self, loc: Span | None) -> Value:
        """The same value, placed at ``loc`` unless its expression has a place already."""
        if self.expr.loc is not None or loc is None:
            return self
        return dataclasses.replace(self, expr=dataclasses.replace(self.expr, loc=loc))


def constant(value: Scalar) -> Value:
    return Value(const(value), "bool" if isinstance(value, bool) else "int" if isinstance(value, int) else "float")


def coordinate(rank: str) -> Value:
    return Value(index(rank), "int", frozenset((rank,)))


def extent(name: int | str) -> Value:
    return Value(size(name), "int")


def read(name: str, dtype: DType, args: tuple[Value, ...], space: tuple[Expr, ...] = (), plain: bool = False) -> Value:
    """``name[args]``."""
    whole = join(args)
    return Value(
        load(name, *(a.expr for a in args)),
        dtype,
        whole.ranks,
        merged((*whole.space, *space)),
        plain and whole.plain,
    )


def join(args: Iterable[Value]) -> Value:
    """The bookkeeping of an operation on ``args``; its expression and type mean nothing."""
    args = tuple(args)
    return Value(
        const(0),
        "int",
        frozenset().union(*(a.ranks for a in args)),
        merged(tuple(p for a in args for p in a.space)),
        all(a.plain for a in args),
        merged(tuple(p for a in args for p in a.lost)),
    )


def merged(space: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The conditions, each once."""
    return tuple(dict.fromkeys(p for e in space for p in conjuncts(e)))


def moved(space: tuple[Expr, ...], ranks: tuple[str, ...], args: tuple[Value, ...]) -> tuple[Expr, ...]:
    """The space of a statement over ``ranks``, in the coordinates of a reader that reads it at ``args``."""
    if all(a.expr.op == "index" and a.expr.value == r for r, a in zip(ranks, args, strict=True)):
        return space
    by_rank = {r: a.expr for r, a in zip(ranks, args, strict=True)}
    return tuple(rename(e, by_rank) for e in space)


def apply(op: str, args: tuple[Value, ...], loc: Span | None) -> Value:
    """``op(args)``, types checked, constants folded. Raises SpecError at ``loc``."""
    dtype = result_type(op, args, loc)
    whole = join(args)
    if sum(a.expr.operations for a in args) >= MAX_OPERATIONS or max(a.expr.depth for a in args) >= MAX_DEPTH:
        raise SpecError(
            "this expression is too large once its definitions are filled in", loc, "give a part of it a name of its own"
        )
    if len(whole.space) > MAX_CONDITIONS:
        raise SpecError(
            f"what is read here exists under more than {MAX_CONDITIONS} conditions",
            loc,
            "write the conditions once, where the sum is",
        )
    expr = call(op, *(a.expr for a in args))
    if dtype == "float" and (type(expr.value) is int or any(expr is a.expr and a.dtype == "int" for a in args)):
        expr = call("float", expr)  # folding dropped the float operand: 1.0 * i
    if expr.op == "const":
        return dataclasses.replace(whole, expr=expr, dtype=dtype, lost=whole.space)
    return dataclasses.replace(whole, expr=expr, dtype=dtype).at(loc)


def result_type(op: str, args: tuple[Value, ...], loc: Span | None) -> DType:
    """The type of ``op(args)``. Raises SpecError where it takes other operands."""
    f = FUNCTIONS[op]
    if len(args) != f.arity:
        raise SpecError(f"`{op}` takes {_operands(f.arity)}, found {len(args)}", loc)
    types: list[DType] = [a.dtype for a in args]
    if f.takes == "numeric" and "bool" in types:
        raise SpecError(
            f"{_shown(op)} takes numbers, found a condition", loc, "write int(condition), or `a if condition else b`"
        )
    if f.takes == "int" and set(types) != {"int"}:
        found = "a condition" if "bool" in types else "a float"
        raise SpecError(f"{_shown(op)} divides integers, found {found}", loc, "write floor(a / b) for floats")
    if f.takes == "bool" and set(types) != {"bool"}:
        raise SpecError(f"{_shown(op)} joins conditions, found a number", loc, "compare the number with something: x != 0")
    if op in ("==", "!=") and ("bool" in types) != (set(types) == {"bool"}):
        raise SpecError(f"{_shown(op)} compares a number with a condition", loc)
    if f.takes == "select":
        if types.pop(0) != "bool":
            raise SpecError("a choice depends on a condition, found a number", loc, "compare the number with something: x != 0")
        if ("bool" in types) != (set(types) == {"bool"}):
            raise SpecError("one side of this choice is a condition and the other a number", loc)
    if f.result != "same":
        return f.result  # type: ignore[return-value]  # every other entry of the table is a DType
    return "float" if "float" in types else "int" if "int" in types else "bool"


def _operands(arity: int) -> str:
    return "one operand" if arity == 1 else f"{arity} operands"


def _shown(op: str) -> str:
    return {"neg": "`-`"}.get(op, f"`{op}`")


def rename_plain(value: Value, names: Mapping[str, Value]) -> Value:
    """A plain value over some ranks, read at other coordinates."""
    ranks = (value.ranks - set(names)).union(*(names[r].ranks for r in value.ranks & set(names)))
    expr = rename(value.expr, {r: v.expr for r, v in names.items()})
    return dataclasses.replace(value, expr=expr, ranks=ranks)
