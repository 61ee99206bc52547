"""Symbols that stand for scores, coordinates and inputs while a Python function is traced.

A symbol holds the syntax tree of what was computed with it; every operator makes a larger tree. What would need a value (``if``,
``and``, ``float()``) raises SpecError with the place in the user's Python file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from einfuse.dsl import ast
from einfuse.dsl.trace import Traced, Tracer, here

OPERATIONS: dict[str, Callable[..., Symbol]] = {}
"""The operators here, the functions of `dsl/functions.py` when that is imported."""


class Symbol(Traced):
    """An unknown number or condition."""

    __slots__ = ("expr", "nodes")

    def __init__(self, expr: ast.Expr, nodes: int = 1) -> None:
        self.expr, self.nodes = expr, nodes

    def __repr__(self) -> str:
        return f"<symbol {self.expr!r}>"


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


class TreeTracer(Tracer[Symbol]):
    """Operations on symbols give symbols."""

    library = "einfuse"
    operations = OPERATIONS
    coordinates = ("b", "h", "i", "j")
    defaults = False
    masks = "give it as mask_mod"
    tables = (
        "lists, arrays and tensors are keyword-only arguments, def mod(score, b, h, i, j, *, table), and are given at the call"
    )
    smaller = "write it as an .attn text, with statements"
    captured = "everything else is a keyword-only argument, behind a *"

    def value(self, x: object) -> Symbol:
        """A Python number as a symbol; a symbol as it is."""
        if isinstance(x, Symbol):
            return x
        loc = here()
        if isinstance(x, bool):
            return Symbol(ast.Truth(x, loc))
        if isinstance(x, int | float):
            literal = ast.Number(abs(x), "int" if isinstance(x, int) else "float", loc)
            return Symbol(ast.Unary("neg", literal, loc) if x < 0 else literal)
        return self.value(self.python_number(x))


_TREES = TreeTracer()
Symbol.tracer = _TREES
symbol = _TREES.value
"""A Python number as a symbol; a symbol as it is."""


def made(expr: ast.Expr, *operands: Symbol) -> Symbol:
    """A symbol for an operation on others. Raises SpecError where the tree grows too large."""
    return Symbol(expr, _TREES.within(1 + sum(x.nodes for x in operands)))


def function(name: str, *args: object) -> Symbol:
    """A call of a function or definition of the language."""
    symbols = tuple(map(symbol, args))
    loc = here()
    return made(ast.Call(ast.Name(name, loc), None, tuple(s.expr for s in symbols), None, loc), *symbols)


def _binary(_: object, left: object, right: object, op: str) -> Symbol:
    a, b = symbol(left), symbol(right)
    return made(ast.Binary(op, a.expr, b.expr, here()), a, b)


def _compare(_: object, left: object, right: object, op: str) -> Symbol:
    a, b = symbol(left), symbol(right)
    return made(ast.Compare((op,), (a.expr, b.expr), here()), a, b)


def _unary(_: object, x: Symbol, op: Any) -> Symbol:
    return Symbol(ast.Unary(op, x.expr, here()), x.nodes + 1)


def _getitem(tracer: TreeTracer, x: object, index: object) -> Symbol:
    single = isinstance(x, Symbol)
    tracer.refuse(
        f"{'a traced number' if single else f'a {type(x).__name__} that is no input'} cannot be indexed", tracer.tables
    )


for _make, _operators in (
    (
        _binary,
        {
            "add": "+",
            "sub": "-",
            "mul": "*",
            "truediv": "/",
            "floordiv": "//",
            "mod": "%",
            "pow": "^",
            "and": "and",
            "or": "or",
        },
    ),
    (_compare, {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}),
    (_unary, {"neg": "neg", "invert": "not"}),
):
    OPERATIONS.update({name: partial(_make, op=op) for name, op in _operators.items()})
OPERATIONS |= {"pos": lambda _, x: x, "getitem": _getitem}
