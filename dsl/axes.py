"""The axes of an input: sizes for the IR, and the default coordinates at which a bare name is read."""

from __future__ import annotations

from collections.abc import Collection

from einfuse.dsl import ast
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.names import Binding, Source
from einfuse.dsl.ranks import OPERATORS
from einfuse.dsl.values import Value, apply, coordinate, extent
from einfuse.ir import Expr, Rank, SpecError, Tensor

DTYPES = ("float", "int", "bool")


class Axes:
    """Reads the ``in`` lines in order; ``fresh`` collects the sizes that they introduce."""

    def __init__(self, ranks: tuple[Rank, ...], declared: Collection[str], scope: dict[str, Binding]) -> None:
        self.ranks = {r.name: r for r in ranks}
        self.declared, self.scope = declared, scope
        self.fresh: list[str] = []

    def input(self, x: ast.Input, given: Collection[str]) -> tuple[Tensor, Source]:
        """The IR tensor of an ``in`` line, and what its name means."""
        dtype = x.type.text if x.type is not None else "float"
        if dtype not in DTYPES:
            assert x.type is not None, "the default is a type"
            raise SpecError(
                f"`{dtype}` is not a type of input", x.type.loc, nearest(dtype, DTYPES) or f"types: {', '.join(DTYPES)}"
            )
        sizes, access = [], []
        for axis in x.axes:
            ranked = any(isinstance(n, ast.Name) and n.text in self.ranks for n, _ in ast.walk(axis))
            size, at = self._ranked(axis) if ranked else (self._size(axis).expr, None)
            sizes.append(size)
            access.append(at)
        tensor = Tensor(x.name.text, tuple(sizes), dtype, loc=x.name.loc)  # type: ignore[arg-type]  # checked above
        present = not x.optional or x.name.text in given
        return tensor, Source(x.name.text, dtype, tuple(access), tuple(map(shown, x.axes)), x.optional, present)  # type: ignore[arg-type]

    def _ranked(self, axis: ast.Expr) -> tuple[Expr, Value]:
        """An axis with a default coordinate: a rank, or a rank divided by a size."""
        if isinstance(axis, ast.Name):
            return extent(self.ranks[axis.text].size).expr, coordinate(axis.text)
        if (
            isinstance(axis, ast.Binary)
            and axis.op == "//"
            and isinstance(axis.left, ast.Name)
            and axis.left.text in self.ranks
        ):
            if not any(isinstance(n, ast.Name) and n.text in self.ranks for n, _ in ast.walk(axis.right)):
                rank, by = self.ranks[axis.left.text], self._size(axis.right)
                size = apply("//", (extent(rank.size), by), axis.loc)
                return size.expr, apply("//", (coordinate(rank.name), by), axis.loc)
        raise SpecError(
            f"the axis `{shown(axis)}` is neither a rank, a rank // a size, nor a size",
            axis.loc,
            "declare the axis by its size, and read the input with explicit indices",
        )

    def _size(self, e: ast.Expr) -> Value:
        """An expression over sizes and integers; a name that means nothing yet becomes a size."""
        if isinstance(e, ast.Number) and e.kind == "int" and isinstance(e.value, int):
            return extent(e.value)
        if isinstance(e, ast.Name):
            return self._named(e)
        if isinstance(e, ast.Binary) and e.op in OPERATORS:
            return apply(e.op, (self._size(e.left), self._size(e.right)), e.loc)
        raise SpecError("the size of an axis is made of sizes, integers, + - * // and %", e.loc)

    def _named(self, e: ast.Name) -> Value:
        if "." in e.text:
            raise SpecError(f"`{e}` is not a size", e.loc)
        known = self.scope.get(e.text)
        if known is None and e.text not in self.declared:
            if e.text not in self.fresh:
                self.fresh.append(e.text)
            return extent(e.text)
        if not isinstance(known, Value) or known.dtype != "int" or known.expr.op == "load":
            raise SpecError(f"`{e}` is not a size", e.loc, "an axis is a size: a rank's, an int parameter's, or a new name")
        return known


def shown(e: ast.Expr) -> str:
    """An axis as the user wrote it, for messages."""
    if isinstance(e, ast.Name):
        return e.text
    if isinstance(e, ast.Number):
        return str(e.value)
    if isinstance(e, ast.Binary):
        sides = [f"({shown(x)})" if isinstance(x, ast.Binary) else shown(x) for x in (e.left, e.right)]
        return f"{sides[0]} {e.op} {sides[1]}"
    return "..."
