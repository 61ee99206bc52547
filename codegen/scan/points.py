"""The points of a block and of its pairs: what is read at the other point of a pair is the same value under another name.

`ScanBlocks` makes the operations that only scans have, `PairExpressions` finds the reads at the other point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from einfuse.codegen import plan as kp
from einfuse.codegen.lowering.blocks import Blocks
from einfuse.codegen.lowering.expressions import Expressions
from einfuse.codegen.lowering.sizes import Sizes
from einfuse.codegen.plan import Value
from einfuse.codegen.plan.scan import Prefix, Relabel, Solve
from einfuse.ir import Cascade, Expr, Fold
from einfuse.ir import index as coordinate
from einfuse.ir.expr import indices, rename


@dataclass(slots=True)
class ScanBlocks(Blocks):
    """Operations of a scan along ``fold.rank``; the ranks of ``fold.aligned`` are the same points again."""

    fold: Fold = field(kw_only=True)

    def coordinate(self, rank: str) -> Value:
        own = self.fold.rank
        if rank in self.fold.aligned:
            return self.relabelled(self.coordinate(own), own, rank)
        if rank == self.fold.count:  # a number that changes from block to block
            return self.emit(kp.Coordinate(Value(f"{rank}_at", (), "int"), rank), (), own)
        return Blocks.coordinate(self, rank)

    def relabelled(self, value: Value, old: str, now: str) -> Value:
        """The value along ``now`` in place of ``old``."""
        if old not in value.dims:
            return value
        dims = self.dims({now if d == old else d for d in value.dims})
        return self.emit(Relabel(Value(value.name, dims, value.dtype), value), (value,))

    def prefix(self, value: Value, rank: str, reverse: bool, exclusive: bool, name: str) -> Value:
        value = value if rank in value.dims else self.broadcast(value, {rank}, name)
        return self.emit(Prefix(Value(name, value.dims, "float"), value, rank, reverse, exclusive), (value,))

    def solve(self, matrix: Value, known: Value, transposed: bool, name: str) -> Value:
        return self.emit(Solve(Value(name, known.dims, "float"), matrix, known, transposed), (matrix, known))


class PairExpressions(Expressions):
    """Expressions over a point of a block and another one of the same block."""

    blocks: ScanBlocks

    def __init__(self, cascade: Cascade, sizes: Sizes, blocks: ScanBlocks) -> None:
        super().__init__(cascade, sizes, blocks)
        self.fold = blocks.fold

    def value(
        self,
        e: Expr,
        name: str = "t",
        env: Mapping[str, Value] | None = None,
        new: Mapping[str, Value] | None = None,
    ) -> Value:
        own, there = self.fold.rank, [r for r in self.fold.aligned if r in indices(e)]
        if len(there) == 1 and own not in indices(e) and not self._held_there(e):
            here = rename(e, {there[0]: coordinate(own)})
            return self.blocks.relabelled(self.value(here, name, env, new), own, there[0])
        return super().value(e, name, env, new)

    def _held_there(self, e: Expr) -> bool:
        """Is ``e`` a statement over the other points, read at them?"""
        return e.op == "load" and e.name in self.ranks and e.args == tuple(map(coordinate, self.ranks[e.name]))

    def statement(self, e: Expr, value: Value) -> Value:
        ranks = self.ranks[e.name]
        moved = {r: a.name for r, a in zip(ranks, e.args, strict=True) if a.op == "index" and r != a.name}
        plain = all(a.op == "index" for a in e.args)
        if plain and len(moved) == 1 and {*moved, *moved.values()} <= {self.fold.rank, *self.fold.aligned}:
            ((old, now),) = moved.items()
            return self.blocks.relabelled(value, old, now)
        return super().statement(e, value)
