"""Which tensors Hopper's copy engine can bring in blocks: it computes addresses and bounds by itself, and holds them in no register.

    pointers      tl.load(k_ptr + b * k_s0 + ... + (j_at[:, None] * k_s2 + d[None, :] * k_s3), mask=j < Nk, other=0.0)
    descriptors   k_desc.load([b, h, j_lo, 0])         0 beyond the tensor's shape

A descriptor is made at launch. It needs a base and strides of 16 bytes and a last stride of 1: a module holds a kernel of either kind, and
``launch`` takes the one that the tensors allow.
"""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.codegen.plan import BYTES, Arg, Coordinate, KernelPlan, Load, Store, Value, operations
from einfuse.codegen.triton.layout import Layout

LARGEST = 256
"""Coordinates of an axis that one copy brings at most."""


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor of ``axes`` axes of which every access is a block of the rank ``rows`` and the feature rank ``columns``, its last two."""

    tensor: str
    axes: int
    rows: str
    columns: str

    def shape(self, rows: int, columns: int) -> list[int]:
        return [*[1] * (self.axes - 2), rows, columns]


def described(plan: KernelPlan, layout: Layout) -> dict[str, Described]:
    """The tensors by name."""
    coordinates = {op.out.name: op.rank for op in operations(plan) if isinstance(op, Coordinate)}
    every = [op for op in operations(plan) if isinstance(op, Load | Store)]
    out = {}
    for t in dict.fromkeys(plan.tensors):
        kinds = {_kind(op, coordinates) for op in every if op.tensor == t.name}
        kind = kinds.pop() if len(kinds) == 1 else None
        if kind is not None and _fits(t, *kind, layout):
            out[t.name] = Described(t.name, t.axes, *kind)
    return out


def _kind(op: Load | Store, coordinates: dict[str, str]) -> tuple[str, str] | None:
    """The two ranks of an access to a plain block."""
    if len(op.index) < 2 or (isinstance(op, Load) and op.clamp):
        return None
    *outer, row, column = op.index
    block: Value = op.out if isinstance(op, Load) else op.value
    ranks = (coordinates.get(row.name, ""), coordinates.get(column.name, ""))
    return ranks if block.dims == ranks and not any(v.dims for v in outer) else None


def _fits(t: Arg, rows: str, columns: str, layout: Layout) -> bool:
    """Whether the blocks of a tensor are such as the engine brings, and their bounds are those of the tensor."""
    tile = layout.plan.tile
    whole = rows in layout.folds or (tile is not None and tile.rank == rows and tile.block == layout.blocks[rows])
    widths = (layout.blocks[rows], layout.blocks[columns])
    return (
        whole
        and layout.is_feature(columns)
        and t.storage in ("bf16", "f16")
        and 2 <= t.axes <= 5
        and max(widths) <= LARGEST
        and widths[1] * BYTES[t.storage] >= 32
    )
