"""The meaning of a plan: straight loops over its ambient points, tiles and blocks, one torch operation for each of its own.

A back end is right when its kernel writes what `interpret` writes. What a plan leaves to chance does not pass unseen: an index that is outside
its tensor raises, and the last block of a fold is as long as all others, with a thousand in the floats (products may rest on loads that are
finite) and True in the conditions that are loaded past the end of the rank: a plan has to keep them out. Blocks of tiles and features hold the
points that exist and no padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from einfuse.codegen.plan import nodes as kp
from einfuse.codegen.plan.text import shown
from einfuse.ir import DType, Scalar
from einfuse.ir.meaning import TORCH

_POISON: dict[DType, Scalar] = {"float": 1e3, "int": 0, "bool": True}
_ROUNDED = {"bf16": torch.bfloat16, "f16": torch.float16}


def interpret(
    plan: kp.KernelPlan,
    tensors: Mapping[str, Tensor],
    params: Mapping[str, Scalar],
    sizes: Mapping[str, int],
    dtype: torch.dtype = torch.float64,
) -> None:
    """Writes the outputs of ``plan`` into ``tensors``, computed in ``dtype``.

    ``tensors`` holds the outputs and the tables of live blocks as well, as a launch has them. Operands of products are rounded to the
    plan's ``narrow`` type where it asks for that and ``dtype`` is no wider than float32. Raises IndexError for an index outside its tensor.
    """
    rows = _extent(plan.tile.size, sizes) if plan.tile else 1
    tensors = {**tensors, **{k.tensor: torch.full((rows, _extent(k.size, sizes)), torch.nan, dtype=dtype) for k in plan.kept}}
    points = [[(b.rank, n) for n in range(_extent(b.size, sizes))] for b in plan.ambient]
    tiles = range(0, _extent(plan.tile.size, sizes), plan.tile.block) if plan.tile else (None,)
    for point in itertools.product(*points):
        for lo in tiles:
            _Program(plan, tensors, params, sizes, dtype, dict(point), lo).run()


def _extent(size: int | str, sizes: Mapping[str, int]) -> int:
    return size if isinstance(size, int) else sizes[size]


@dataclass(slots=True)
class _Program:
    """One program: an ambient point and a tile.

    Every value has an axis for each rank of `KernelPlan.order`, of length 1 where it does not vary.
    """

    plan: kp.KernelPlan
    tensors: Mapping[str, Tensor]
    params: Mapping[str, Scalar]
    sizes: Mapping[str, int]
    dtype: torch.dtype
    point: Mapping[str, int]
    first: int | None  # of the tile's rows
    env: dict[str, Tensor] = field(default_factory=dict)
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The coordinates of every rank's block: the first, and the one after the last."""
    folded: str = ""
    past: Tensor | None = None
    """Which points of a block of the ``folded`` rank do not exist; None where all do."""

    def run(self) -> None:
        for b in self.plan.features:
            self.spans[b.rank] = (0, _extent(b.size, self.sizes))
        if self.plan.tile is not None and self.first is not None:
            tile = self.plan.tile
            self.spans[tile.rank] = (self.first, min(self.first + tile.block, _extent(tile.size, self.sizes)))
        self.plan.walk(self.region, self.fold)

    def fold(self, fold: kp.Fold) -> None:
        self.region(fold.bounds)
        for s in fold.states:
            self.env[s.value.name] = self.scalar(s.init, s.value.dtype)
        size = _extent(fold.size, self.sizes)
        for n, phase in enumerate(fold.phases):
            for lo in self.blocks(fold, phase, n):
                self.spans[fold.rank] = (lo, lo + fold.step)
                self.folded, self.past = fold.rank, self.coordinate(fold.rank) >= size if lo + fold.step > size else None
                assert self.past is None or phase.label != "full", "full phases are whole blocks"
                self.region(phase.body)
                moved = [self.env[u.name] for u in phase.updates]
                self.env |= {s.value.name: x for s, x in zip(fold.states, moved, strict=True)}
        self.spans.pop(fold.rank, None)
        self.past = None

    def blocks(self, fold: kp.Fold, phase: kp.Phase, number: int) -> Iterator[int]:
        """The first coordinate of every block of a phase."""
        if not fold.tabulated:
            yield from range(int(self.env[phase.lo.name]), int(self.env[phase.hi.name]), fold.step)
            return
        row = 0
        for rank in fold.table_ranks:
            block = next(b for b in self.plan.ambient if b.rank == rank)
            row = row * _extent(block.size, self.sizes) + self.point[rank]
        if self.plan.tile is not None and self.first is not None:
            tile = self.plan.tile
            row = row * -(-_extent(tile.size, self.sizes) // tile.block) + self.first // tile.block
        count = int(self.tensors[f"{fold.rank}_count"][row, number])
        for n in range(count):
            yield int(self.tensors[f"{fold.rank}_block"][row, number, n]) * fold.step

    # -------------------------------------------------------------------------------------------------------------- operations

    def region(self, region: kp.Region) -> None:
        for op in region:
            if isinstance(op, kp.Store):
                self.store(op)
            else:
                self.env[op.out.name] = self.value(op)

    def value(self, op: kp.Op) -> Tensor:
        match op:
            case kp.Const(out=out, value=value):
                return self.scalar(value, out.dtype)
            case kp.Param(out=out, name=name):
                return self.scalar(self.params[name], out.dtype)
            case kp.Size(out=out, name=name):
                return self.scalar(self.size(name), out.dtype)
            case kp.Coordinate(rank=rank):
                return self.coordinate(rank)
            case kp.Load():
                return self.load(op)
            case kp.Map(out=out, fn=fn, args=args):
                return self.typed(self.applied(fn, [self.env[a.name] for a in args]), out.dtype)
            case kp.Reduce(out=out, reducer=reducer, arg=arg, rank=rank, at=at):
                assert reducer.tensors is not None, "a monoid"
                axis = self.plan.order.index(rank)
                block = self.env[arg.name].expand(self.shape(arg))
                if at is not None:
                    block = torch.where(self.env[at.name] == self.coordinate(out.dims[-1]), block, 0)
                return self.typed(reducer.tensors(block.movedim(axis, -1), [block.ndim - 1]).unsqueeze(axis), out.dtype)
            case kp.Dot():
                return self.product(op)
        raise AssertionError(f"{shown(op)} gives no value")

    def applied(self, fn: str, args: list[Tensor]) -> Tensor:
        if fn == "exp_difference":
            y, m, *c = args
            return torch.exp((y * c[0] if c else y) - m)
        if kp.FUNCTIONS[fn].special:
            args = [a.to(self.dtype) for a in args]
        return TORCH[fn](*args)

    def product(self, op: kp.Dot) -> Tensor:
        a, b = (self.env[x.name].expand(self.shape(x)) for x in (op.a, op.b))
        if op.where is not None:
            b = torch.where(self.env[op.where.name], b, torch.zeros_like(b))
        if op.narrow and self.plan.narrow in _ROUNDED and self.dtype != torch.float64:
            a, b = (x.to(_ROUNDED[self.plan.narrow]).to(self.dtype) for x in (a, b))
        found = (a * b).sum(self.plan.order.index(op.rank), keepdim=True)
        return found if op.acc is None else self.env[op.acc.name] + found

    def load(self, op: kp.Load) -> Tensor:
        tensor = self.tensors[op.tensor]
        where = None if op.where is None else self.env[op.where.name]
        past = self.past_of(op.index)
        index = []
        for axis, v in enumerate(op.index):
            at = self.env[v.name]
            if axis in op.clamp or where is not None:
                at = at.clamp(0, max(0, tensor.shape[axis] - 1))
            index.append(self.inside(at if past is None else torch.where(past, 0, at), tensor, axis, op))
        if where is not None and 0 in tensor.shape:
            return self.scalar(0, op.out.dtype)  # there is nothing to read
        found = tensor[tuple(torch.broadcast_tensors(*index))] if index else tensor.reshape([1] * len(self.plan.order))
        found = self.typed(found, op.out.dtype)
        if past is not None:
            found = torch.where(past, self.scalar(_POISON[op.out.dtype], op.out.dtype), found)
        return found if where is None else torch.where(where, found, torch.zeros_like(found))

    def store(self, op: kp.Store) -> None:
        tensor, value = self.tensors[op.tensor], self.env[op.value.name]
        past = self.past_of(op.index)
        index = [self.env[v.name] for v in op.index]
        index = [self.inside(x if past is None else torch.where(past, 0, x), tensor, axis, op) for axis, x in enumerate(index)]
        shape = torch.broadcast_shapes(self.shape(op.value), *(x.shape for x in index))
        value = value.expand(shape).to(tensor.dtype)
        exist = slice(None) if past is None else ~past.expand(shape)
        tensor[tuple(x.expand(shape)[exist] for x in index)] = value[exist]

    def past_of(self, index: Sequence[kp.Value]) -> Tensor | None:
        """Which points of an index are past the end of the folded rank; None where it does not span that."""
        return self.past if any(self.folded in v.dims for v in index) else None

    def inside(self, at: Tensor, tensor: Tensor, axis: int, op: kp.Op) -> Tensor:
        size = tensor.shape[axis]
        if at.numel() and not bool(((0 <= at) & (at < size)).all()):
            raise IndexError(
                f"plan {self.plan.name}: axis {axis} has {size} points, read from {int(at.min())} to {int(at.max())}: {shown(op)}"
            )
        return at

    # ------------------------------------------------------------------------------------------------------------------ values

    def scalar(self, value: Scalar, dtype: DType) -> Tensor:
        made = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        return self.typed(made.reshape([1] * len(self.plan.order)), dtype)

    def typed(self, x: Tensor, dtype: DType) -> Tensor:
        return x.to({"float": self.dtype, "int": torch.int64, "bool": torch.bool}[dtype])

    def coordinate(self, rank: str) -> Tensor:
        if rank in self.point:
            return self.scalar(self.point[rank], "int")
        axes = [1] * len(self.plan.order)
        axes[self.plan.order.index(rank)] = -1
        return torch.arange(*self.spans[rank]).reshape(axes)

    def size(self, name: str) -> int:
        rank, _, end = name.rpartition(".")
        return self.sizes[name] if name in self.sizes or not rank else self.spans[rank][end == "hi"]

    def shape(self, v: kp.Value) -> list[int]:
        """The lengths of a value's axes: of the ranks it spans, the points of their blocks."""
        return [hi - lo if r in v.dims else 1 for r in self.plan.order for lo, hi in [self.spans.get(r, (0, 1))]]
