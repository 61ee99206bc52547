"""Blocks as Triton wants them: powers of two, at least 16 wide in a matrix product, and which of them hold padding."""

from __future__ import annotations

from einfuse.codegen.plan import Block, Dot, Fold, KernelPlan, Value, operations

MATRIX = 16
"""The least extent of an operand of ``tl.dot`` that every target takes."""


def power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


class Layout:
    """The block size of every rank that blocks span, with the bound of its coordinates.

    A tile or a feature rank that takes part in a matrix product is widened to 16 where it is smaller. A fold's step is what the
    plan says, because the next iteration starts there: products over narrower steps are written as sums instead.
    """

    def __init__(self, plan: KernelPlan) -> None:
        self.plan = plan
        self.folds: dict[str, Fold] = {}
        for f in plan.folds:
            assert f.size != "", f"the fold over {f.rank} has no size"
            assert f.step == power_of_two(f.step), f"the step {f.step} over {f.rank} is no power of two"
            known = self.folds.setdefault(f.rank, f)
            assert (known.step, known.size) == (f.step, f.size), f"two steps or sizes of {f.rank}"
        self._features = {f.rank: f for f in plan.features}
        multiplied = {r for op in operations(plan) if isinstance(op, Dot) for r in (*op.a.dims, *op.b.dims)}
        self.blocks: dict[str, int] = {}
        if plan.tile:
            self.blocks[plan.tile.rank] = self._widened(plan.tile.rank, plan.tile.block, multiplied)
        self.blocks |= {r: f.step for r, f in self.folds.items()}
        self.blocks |= {f.rank: self._widened(f.rank, self._whole(f), multiplied) for f in plan.features}

    @staticmethod
    def _whole(feature: Block) -> int:
        """Features are held whole where their number is known and they are held at all."""
        if isinstance(feature.size, int) and feature.block != 1:
            return max(feature.block, feature.size)
        return feature.block

    @staticmethod
    def _widened(rank: str, held: int, multiplied: set[str]) -> int:
        return max(power_of_two(held), MATRIX if rank in multiplied else 1)

    def is_tile(self, rank: str) -> bool:
        return self.plan.tile is not None and self.plan.tile.rank == rank

    def is_feature(self, rank: str) -> bool:
        return rank in self._features

    def size(self, rank: str) -> int | str:
        """The number of coordinates of a rank: a number, or the name of a launch size."""
        if rank in self.folds:
            return self.folds[rank].size
        if rank in self._features:
            return self._features[rank].size
        tile = self.plan.tile
        assert tile is not None, f"{rank} is no rank of a block"
        assert tile.rank == rank, f"{rank} is no rank of a block"
        return tile.size

    def padded(self, rank: str) -> bool:
        """Whether a block of a tile or feature rank may hold coordinates that do not exist."""
        return not self.is_feature(rank) or self.size(rank) != self.blocks[rank]

    def multiplies(self, dot: Dot) -> bool:
        """Whether ``tl.dot`` takes a `Dot`: a matrix product, not in f64, wide enough (others are written as sums)."""
        x, y = _outer(dot.a, dot.rank), _outer(dot.b, dot.rank)
        plain = len(x) == len(y) == 1 and x != y and dot.rank in dot.a.dims and dot.rank in dot.b.dims
        wide = all(self.blocks[r] >= MATRIX for r in (*dot.a.dims, *dot.b.dims))
        return plain and wide and self.plan.compute == "f32"

    def multiplies_rows(self, dot: Dot) -> bool:
        """Whether ``tl.dot`` takes a `Dot` of rows with rows, as the diagonal of a matrix product."""
        wide = all(self.blocks[r] >= MATRIX for r in dot.a.dims)
        return (
            dot.a.dims == dot.b.dims
            and len(dot.a.dims) == 2
            and dot.a.dims[1] == dot.rank
            and wide
            and self.plan.compute == "f32"
        )


def _outer(value: Value, rank: str) -> tuple[str, ...]:
    return tuple(r for r in value.dims if r != rank)
