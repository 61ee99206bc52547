"""Symbols that stand for scores, coordinates and inputs while a Python function is traced.

A symbol holds the syntax tree of what was computed with it; every operator makes a larger tree. What would need a value (``if``,
``and``, ``float()``) raises SpecError with the place in the user's Python file.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from einfuse.dsl import ast
from einfuse.ir import MAX_OPERATIONS, Span, SpecError

_HERE = str(Path(__file__).resolve().parent)


def here() -> Span | None:
    """The place in the user's code that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and str(Path(frame.f_code.co_filename).resolve().parent) == _HERE:
        frame = frame.f_back
    if frame is None:
        return None
    at = next(itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None), None)
    line, last, column, end = at or (None, None, None, None)
    if line is None or column is None:
        return Span(frame.f_code.co_filename, frame.f_lineno, 1)
    length = end - column if end is not None and last == line else 1
    return Span(frame.f_code.co_filename, line, column + 1, max(1, length))


class Symbol:
    """An unknown number or condition."""

    __slots__ = ("expr", "nodes")
    __hash__ = object.__hash__

    def __init__(self, expr: ast.Expr, nodes: int = 1) -> None:
        self.expr, self.nodes = expr, nodes

    # -- arithmetic ------------------------------------------------------------------------------------------------------

    def __add__(self, other: Any) -> Symbol:
        return binary("+", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return binary("+", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return binary("-", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return binary("-", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return binary("*", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return binary("*", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return binary("/", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return binary("/", other, self)

    def __floordiv__(self, other: Any) -> Symbol:
        return binary("//", self, other)

    def __rfloordiv__(self, other: Any) -> Symbol:
        return binary("//", other, self)

    def __mod__(self, other: Any) -> Symbol:
        return binary("%", self, other)

    def __rmod__(self, other: Any) -> Symbol:
        return binary("%", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return binary("^", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return binary("^", other, self)

    def __neg__(self) -> Symbol:
        return Symbol(ast.Unary("neg", self.expr, here()), self.nodes + 1)

    def __pos__(self) -> Symbol:
        return self

    def __abs__(self) -> Symbol:
        return function("abs", self)

    # -- conditions ------------------------------------------------------------------------------------------------------

    def __lt__(self, other: Any) -> Symbol:
        return compare("<", self, other)

    def __le__(self, other: Any) -> Symbol:
        return compare("<=", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return compare(">", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return compare(">=", self, other)

    def __eq__(self, other: object) -> Symbol:  # type: ignore[override]  # a comparison of symbols is a symbol
        return compare("==", self, other)

    def __ne__(self, other: object) -> Symbol:  # type: ignore[override]  # as above
        return compare("!=", self, other)

    def __and__(self, other: Any) -> Symbol:
        return binary("and", self, other)

    def __rand__(self, other: Any) -> Symbol:
        return binary("and", other, self)

    def __or__(self, other: Any) -> Symbol:
        return binary("or", self, other)

    def __ror__(self, other: Any) -> Symbol:
        return binary("or", other, self)

    def __invert__(self) -> Symbol:
        return Symbol(ast.Unary("not", self.expr, here()), self.nodes + 1)

    # -- what a symbol cannot do -----------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        refuse(
            "the value of a symbol is not known while a function is traced",
            "write & | ~ instead of and, or, not, and einfuse.where(condition, a, b) instead of if; a < b < c is (a < b) & (b < c)",
        )

    def __float__(self) -> float:
        refuse(
            "a symbol has no value while a function is traced",
            "use the functions of einfuse (einfuse.exp, ...), not those of math",
        )

    def __int__(self) -> int:
        refuse("a symbol has no value while a function is traced", "use einfuse.floor(x), or a comparison")

    __index__ = __int__

    def __iter__(self) -> NoReturn:
        refuse("a symbol is one number: it cannot be iterated over", "index it: table[h, j - i]")

    def __len__(self) -> int:
        refuse("a symbol is one number: it has no length", "the sizes of ranks are written in an .attn text")

    def __getitem__(self, index: Any) -> Symbol:
        refuse("only an input can be indexed", "declare it as a keyword-only argument: def mod(score, b, h, i, j, *, table)")

    def __repr__(self) -> str:
        return f"<symbol {self.expr!r}>"

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Symbol:
        """``torch.tanh(symbol)`` and its like mean the function of that name."""
        from einfuse.dsl import functions

        named: Callable[..., Symbol] | None = getattr(functions, func.__name__, None)
        if named is None or func.__name__ not in functions.__all__:
            refuse(f"torch.{func.__name__} cannot be traced", f"einfuse has {', '.join(functions.__all__)}")
        return named(*args, **(kwargs or {}))


class Captured(Symbol):
    """An input: a number by itself, a tensor where it is indexed."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        super().__init__(ast.Name(name))
        self.name = name

    def __getitem__(self, index: Any) -> Symbol:
        args = tuple(map(symbol, index if isinstance(index, tuple) else (index,)))
        loc = here()
        return Symbol(ast.Read(ast.Name(self.name, loc), tuple(a.expr for a in args), loc), 1 + sum(a.nodes for a in args))


def refuse(message: str, hint: str) -> NoReturn:
    raise SpecError(message, here(), hint)


def symbol(value: object) -> Symbol:
    """A Python number as a symbol; a symbol as it is."""
    if isinstance(value, Symbol):
        return value
    loc = here()
    if isinstance(value, bool):
        return Symbol(ast.Truth(value, loc))
    if isinstance(value, int | float):
        literal = ast.Number(abs(value), "int" if isinstance(value, int) else "float", loc)
        return Symbol(ast.Unary("neg", literal, loc) if value < 0 else literal)
    refuse(
        f"a traced function computes with numbers and symbols, found {type(value).__name__}",
        "pass tensors as keyword-only arguments of the function, and give them at the call",
    )


def made(expr: ast.Expr, *operands: Symbol) -> Symbol:
    """A symbol for an operation on others. Raises SpecError where the tree grows too large."""
    nodes = 1 + sum(x.nodes for x in operands)
    if nodes > MAX_OPERATIONS:
        raise SpecError(
            "this function makes an expression of too many parts", expr.loc, "write it as an .attn text, with statements"
        )
    return Symbol(expr, nodes)


def binary(op: str, left: object, right: object) -> Symbol:
    a, b = symbol(left), symbol(right)
    return made(ast.Binary(op, a.expr, b.expr, here()), a, b)


def compare(op: str, left: object, right: object) -> Symbol:
    a, b = symbol(left), symbol(right)
    return made(ast.Compare((op,), (a.expr, b.expr), here()), a, b)


def function(name: str, *args: object) -> Symbol:
    """A call of a function or definition of the language."""
    symbols = tuple(map(symbol, args))
    loc = here()
    return made(ast.Call(ast.Name(name, loc), None, tuple(s.expr for s in symbols), None, loc), *symbols)
