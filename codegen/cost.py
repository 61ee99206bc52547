"""What a kernel costs, counted on its plan: matrix products, other operations, special functions and memory, and the bounds they set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from einfuse.codegen.plan import BYTES, FUNCTIONS, Dot, Fold, KernelPlan, Load, Map, Op, Reduce, Region
from einfuse.codegen.plan.scan import Prefix, Relabel, ScanPlan, Solve

Resource = Literal["matrix products", "arithmetic", "special functions", "memory"]


@dataclass(frozen=True, slots=True)
class Device:
    """Peak rates, in operations or bytes a second: products of 16-bit and of fp32 operands (a multiply and an add are two), fp32
    instructions, special functions, and main memory."""

    name: str
    products: float
    wide_products: float
    arithmetic: float
    special: float
    memory: float


DEVICES = {
    "h200": Device("H200 SXM", 989e12, 67e12, 33.5e12, 3.9e12, 4.8e12),
    "h100": Device("H100 SXM", 989e12, 67e12, 33.5e12, 3.9e12, 3.35e12),
    "a100": Device("A100 SXM 80 GB", 312e12, 19.5e12, 9.75e12, 2.4e12, 2.04e12),
}
"""From the vendors' data sheets; special functions are 16 a clock and multiprocessor."""


@dataclass(frozen=True, slots=True)
class Work:
    """Operations: ``products`` are flops of matrix products (two a multiply-add), ``arithmetic`` and ``special`` count scalars, ``gathers``
    the elements that are read at computed coordinates."""

    products: float = 0.0
    arithmetic: float = 0.0
    special: float = 0.0
    gathers: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.arithmetic + other.arithmetic,
            self.special + other.special,
            self.gathers + other.gathers,
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.products * times, self.arithmetic * times, self.special * times, self.gathers * times)


ARITHMETIC, FUNCTION, GATHER = 1, 30, 120
"""What an operation on one number, a special function and an element read at computed coordinates take, in flops of a matrix product at
the rates of wide vectors. (Least squares over the kernels of a dozen normalisers and score functions on a CPU with 100 GF/s of products:
most arithmetic runs beside them; a function takes 0.3 ns, a gather with the arithmetic of its coordinates 1.2 ns.)"""


def weighted(work: Work) -> float:
    """The work as one number, in flops of a matrix product."""
    return work.products + ARITHMETIC * work.arithmetic + FUNCTION * work.special + GATHER * work.gathers


@dataclass(frozen=True, slots=True)
class Cost:
    """A kernel's work and the bytes it must move at least (every tensor once)."""

    work: Work
    bytes: float
    narrow: bool

    def times(self, device: Device) -> dict[Resource, float]:
        """The seconds that each resource needs at its peak rate; the largest is the bound."""
        return {
            "matrix products": self.work.products / (device.products if self.narrow else device.wide_products),
            "arithmetic": self.work.arithmetic / device.arithmetic,
            "special functions": self.work.special / device.special,
            "memory": self.bytes / device.memory,
        }


def cost(plan: KernelPlan, sizes: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]], live: Mapping[str, float]) -> Cost:
    """The cost of one launch. ``live`` gives for a folded rank the share of the tiles that are visited (1 unless named)."""

    def extent(n: int | str) -> int:
        return n if isinstance(n, int) else sizes[n]

    points = math.prod(extent(b.size) for b in plan.ambient)
    rows = 1 if plan.tile is None else extent(plan.tile.size)
    total = Work()
    for fold, work in row_work(plan):
        visited = extent(fold.size) * live.get(fold.rank, 1.0) if fold else 1.0
        total += work * (points * rows * visited)
    moved = sum(math.prod(shapes[t.name]) * BYTES[t.storage] for t in plan.tensors if t.name in shapes)
    return Cost(total, moved, plan.narrow in ("bf16", "f16"))


def row_work(plan: KernelPlan) -> list[tuple[Fold | None, Work]]:
    """What one row costs: for every coordinate of each fold, and (None) once."""
    tile = 1 if plan.tile is None else plan.tile.block
    out: list[tuple[Fold | None, Work]] = []
    for step in plan.steps:
        match step:
            case Fold():
                bodies = {p.label: p.body for p in step.phases}  # most blocks need no mask; there may be none to visit
                body = bodies.get("full") or next(iter(bodies.values()), ())
                out.append((step, _work(plan, body, {step.rank: step.step}) * (1 / (tile * step.step))))
            case tuple():
                out.append((None, _work(plan, step, {}) * (1 / tile)))
    return out


def scan_work(plan: ScanPlan, sizes: Mapping[str, int]) -> Work:
    """The work of a scan: that of a block of points, for every block."""
    blocks = {f.rank: f.size if isinstance(f.size, int) else f.block for f in plan.features}
    blocks |= dict.fromkeys(plan.moving, plan.step)
    total = Work()
    for op in plan.body:
        match op:
            case Solve(out=out):
                total += Work(products=2 * math.prod(blocks.get(r, 1) for r in out.dims) * plan.step / 2)
            case Prefix(arg=arg):
                total += Work(arithmetic=math.prod(blocks.get(r, 1) for r in arg.dims))
            case Relabel():
                pass
            case _:
                total += operation(op, blocks)
    extents = [b.size if isinstance(b.size, int) else sizes[b.size] for b in plan.ambient]
    along = plan.size if isinstance(plan.size, int) else sizes[plan.size]
    return total * (math.prod(extents) * math.ceil(along / plan.step))


def _work(plan: KernelPlan, region: Region, folds: Mapping[str, int]) -> Work:
    blocks = {f.rank: f.size if isinstance(f.size, int) else f.block for f in plan.features} | dict(folds)
    if plan.tile is not None:
        blocks[plan.tile.rank] = plan.tile.block
    total = Work()
    for op in region:
        total += operation(op, blocks)
    return total


def operation(op: Op, blocks: Mapping[str, int]) -> Work:
    """What one operation costs, for blocks of these sizes (1 for any other rank)."""

    def area(dims: tuple[str, ...]) -> float:
        return float(math.prod(blocks.get(r, 1) for r in dims))

    match op:
        case Dot(out=out, rank=rank):
            return Work(products=2 * area((*out.dims, rank)))
        case Reduce(arg=arg):
            return Work(arithmetic=area(arg.dims))
        case Map(out=out, fn=fn) if out.dtype == "float":
            special = fn in FUNCTIONS and FUNCTIONS[fn].special
            return Work(special=area(out.dims)) if special else Work(arithmetic=area(out.dims))
        case Load(out=out, index=index, clamp=clamp) if any(index[n].dims for n in clamp):
            return Work(gathers=area(out.dims))
        case _:
            return Work()


def state_bytes(plan: KernelPlan) -> int:
    """The bytes a row keeps on chip from block to block, over all folds."""
    features = {f.rank: f.size if isinstance(f.size, int) else f.block for f in plan.features}
    width = 8 if plan.compute == "f64" else 4
    return sum(width * math.prod(features.get(r, 1) for r in s.value.dims) for f in plan.folds for s in f.states)
