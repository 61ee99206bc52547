"""Sizes by name: expressions over them, and values for an example. Without torch, but for the symbols that a trace has in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from einfuse.ir import Cascade, Expr
from einfuse.ir.functions import FUNCTIONS

if TYPE_CHECKING:
    import torch

Size: TypeAlias = "int | torch.SymInt"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a check. Odd on purpose: no tile divides them."""

    batch: int = 2
    heads: int = 4
    queries: int = 37
    keys: int = 53
    widths: tuple[int, ...] = (24, 40)
    group: int = 2


def example_sizes(cascade: Cascade, shape: Shape) -> dict[str, int]:
    """A value for every size name: by the kind of the rank it belongs to; unknown tables are as long as the longest sequence.

    A size that is made of others comes close to what its kind says: each of the n that it is made of is the n-th root of that.
    """
    sizes: dict[str, int] = {}
    widths = iter(shape.widths * len(cascade.ranks))
    made = {r.size: r.extent for r in cascade.ranks if isinstance(r.size, str) and r.extent is not None}
    for r in cascade.ranks:
        if isinstance(r.size, str) and r.size not in sizes:
            table = {"batch": shape.batch, "head": shape.heads, "query": shape.queries, "key": shape.keys}
            about = table[r.kind] if r.kind in table else next(widths)
            parts = [e.name for e in _size_leaves(made[r.size])] if r.size in made else []
            sizes |= {n: max(1, round(about ** (1 / len(parts)))) for n in parts if n not in sizes}
            sizes[r.size] = int(evaluate(made[r.size], sizes)) if r.size in made else about
    for t in cascade.inputs:
        for axis in t.axes:
            for e in _size_leaves(axis):
                if e.name not in sizes:
                    divisor = axis.op == "//" and axis.args[1] == e
                    sizes[e.name] = shape.group if divisor else max(shape.queries, shape.keys)
    return sizes


def _size_leaves(e: Expr) -> Iterator[Expr]:
    assert e.op in (*FUNCTIONS, "size", "const"), "axes are expressions over sizes"
    if e.op == "size":
        yield e
    for a in e.args:
        yield from _size_leaves(a)


def evaluate(e: Expr, bound: Mapping[str, Size]) -> Size:
    """An expression over sizes."""
    if e.op == "const":
        assert isinstance(e.value, int), "sizes are ints"
        return e.value
    if e.op == "size":
        if e.name not in bound:
            raise ValueError(f"no argument tells the size {e.name}")
        return bound[e.name]
    out: Size = FUNCTIONS[e.op].fold(*(evaluate(a, bound) for a in e.args))  # type: ignore[assignment]
    return out
