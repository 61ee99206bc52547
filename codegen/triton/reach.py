"""How far apart the elements of a block may lie: kernels count that in 32 bits, and where a block begins in 64 (`memory.pointer`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from einfuse.codegen.plan import Coordinate, KernelPlan, Load, Store, operations
from einfuse.codegen.triton.layout import Layout
from einfuse.ir import EinfuseError

if TYPE_CHECKING:
    import torch

MOST = 1 << 31
"""Elements that 32 bits count."""

Axes = Mapping[int, int]
"""Axes of a tensor that blocks lie along, with the length of the longest block."""


def axes(plan: KernelPlan) -> dict[str, Axes]:
    """Those of every tensor that a plan reads or writes in blocks."""
    blocks = Layout(plan).blocks
    ranks = {op.out.name: op.rank for op in operations(plan) if isinstance(op, Coordinate) and op.rank in blocks}
    out: dict[str, dict[int, int]] = {}
    for op in (op for op in operations(plan) if isinstance(op, Load | Store)):
        for axis, v in enumerate(op.index):
            if v.name in ranks:
                known = out.setdefault(op.tensor, {})
                known[axis] = max(known.get(axis, 0), blocks[ranks[v.name]])
    return dict(out)


def check(kernel: str, blocks: Mapping[str, Axes], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises EinfuseError for a tensor whose strides take a block further than that. Strides of more than 32 bits are counted in 64."""
    for name, along in blocks.items():
        x = tensors[name]
        strides = x.stride()
        if max(strides) * sum(along.values()) < MOST:
            continue
        reach = {axis: (min(n, x.shape[axis]) - 1) * strides[axis] for axis, n in along.items() if strides[axis] < MOST}
        if sum(reach.values()) >= MOST:
            axis = max(reach, key=reach.__getitem__)
            raise EinfuseError(
                f"{kernel}: the elements of a block of {name} must lie within 2^31 of each other, found a stride of {strides[axis]} "
                f"along axis {axis}, of which a block has {min(along[axis], x.shape[axis])}; copy it to a layout with shorter strides"
            )
