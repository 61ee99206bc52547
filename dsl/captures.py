"""The keyword-only arguments of traced functions: inputs and run-time numbers, with axes and types told from their uses."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from einfuse.dsl import ast
from einfuse.dsl.symbols import Captured, Symbol
from einfuse.ir import Span, SpecError

RESERVED = frozenset(("q", "k", "v", "s", "o", "b", "h", "i", "j", "d", "e", "group", "B", "H", "Nq", "Nk", "D", "E"))
"""Names that a traced attention has already."""
_RANKS = frozenset(("b", "h", "i", "j"))
_TYPES = {"int": "int", "float": "float", "bool": "bool", int: "int", float: "float", bool: "bool"}


class Captures:
    """Collects arguments over all functions of one attention; the same name means the same input."""

    def __init__(self) -> None:
        self.numbers: dict[str, int | float] = {}
        self.tensors: dict[str, str | None] = {}  # name to annotated type
        self.places: dict[str, Span | None] = {}

    def argument(self, p: inspect.Parameter, place: Span | None) -> Any:
        """What the function gets for a keyword-only argument."""
        default: object = p.default
        required = default is p.empty
        if not required and (isinstance(default, bool) or not isinstance(default, int | float)):
            return default
        if p.name in RESERVED:
            raise SpecError(f"`{p.name}` is a name of the attention itself", place, "choose another name for the argument")
        self.places.setdefault(p.name, place)
        if required:
            if p.name in self.numbers:
                raise self._twice(p.name, place)
            kind = _TYPES.get(p.annotation)
            self.tensors[p.name] = kind or self.tensors.get(p.name)
            return Captured(p.name)
        assert isinstance(default, int | float), "other defaults have been handed back"
        if p.name in self.tensors or repr(self.numbers.get(p.name, default)) != repr(default):
            raise self._twice(p.name, place)
        self.numbers[p.name] = default
        return Symbol(ast.Name(p.name))

    def _twice(self, name: str, place: Span | None) -> SpecError:
        return SpecError(f"two functions mean different things by `{name}`", place, "give one of the arguments another name")

    def params(self) -> tuple[ast.Param, ...]:
        """The run-time numbers as a header declares them."""
        out = []
        for name, default in self.numbers.items():
            kind = "int" if isinstance(default, int) else "float"
            literal: ast.Expr = ast.Number(abs(default), kind)  # type: ignore[arg-type]  # one of the two words
            literal = ast.Unary("neg", literal) if default < 0 else literal
            out.append(ast.Param(ast.Name(name), ast.Name(kind), (), literal))
        return tuple(out)

    def inputs(self, value: ast.Expr, where: ast.Expr | None) -> tuple[ast.Input, ...]:
        """The ``in`` lines of the tensors, told from the whole trace."""
        wanted: dict[str, set[str]] = {name: set() for name in self.tensors}
        for root, kind in ((value, "float"), (where, "bool")):
            if root is not None:
                for name, found in _uses(root, kind):
                    if name in wanted:
                        wanted[name].add(found)
        reads = [n for root in (value, where) if root is not None for n, _ in ast.walk(root)]
        return tuple(self._input(name, reads, wanted[name]) for name in self.tensors)

    def _input(self, name: str, nodes: list[ast.Node], wanted: set[str]) -> ast.Input:
        indexed = [n for n in nodes if isinstance(n, ast.Read) and n.name.text == name]
        bare = len([n for n in nodes if isinstance(n, ast.Name) and n.text == name]) > len(indexed)
        place = self.places[name]
        if bare and indexed:
            raise SpecError(
                f"`{name}` is read both with and without indices", indexed[0].loc, f"index it everywhere: {name}[h]"
            )
        shapes = {len(n.args) for n in indexed}
        if len(shapes) > 1:
            raise SpecError(f"`{name}` is read with {' and '.join(map(str, sorted(shapes)))} indices", indexed[-1].loc)
        axes = tuple(self._axis(name, n, [r.args[n] for r in indexed]) for n in range(max(shapes, default=0)))
        kind = self.tensors[name] or next((t for t in ("bool", "int") if t in wanted), "float")
        return ast.Input(ast.Name(name, place), axes, ast.Name(kind, place), False, place)

    def _axis(self, name: str, n: int, indices: list[ast.Expr]) -> ast.Expr:
        """The rank that always indexes an axis, else a size of its own."""
        first = indices[0]
        if isinstance(first, ast.Name) and first.text in _RANKS and all(x == first for x in indices):
            return ast.Name(first.text)
        return ast.Name(f"{name}_{n}")


def _uses(e: ast.Expr, kind: str) -> Iterator[tuple[str, str]]:
    """Names with the type that the place of their use asks for; ``kind`` is what ``e`` is asked for."""
    stack = [(e, kind)]
    while stack:
        x, want = stack.pop()
        match x:
            case ast.Name():
                yield x.text, want
            case ast.Read():
                yield x.name.text, want
                stack += [(a, "int") for a in x.args]
            case ast.Compare():
                exact = not any(isinstance(n, ast.Number) and n.kind == "float" for o in x.operands for n, _ in ast.walk(o))
                stack += [(o, "int" if exact else "float") for o in x.operands]
            case ast.Binary(op="and") | ast.Binary(op="or"):
                stack += [(x.left, "bool"), (x.right, "bool")]
            case ast.Binary():
                inner = "int" if x.op in ("//", "%") else "float" if x.op in ("/", "^") or want == "bool" else want
                stack += [(x.left, inner), (x.right, inner)]
            case ast.Unary():
                stack.append((x.operand, "bool" if x.op == "not" else want))
            case ast.Conditional():
                stack += [(x.condition, "bool"), (x.then, want), (x.other, want)]
            case ast.Call():
                same = x.name.text in ("abs", "max", "min", "clamp", "sign")
                stack += [(a, want if same else "float") for a in x.args]
