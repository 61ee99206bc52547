"""What may be chosen about a generated kernel without changing what it computes: block sizes, warps, stages, precision.

The numbers below were found by compiling causal attention, its backward and a block-sparse form with `statistics.measure`: the
largest blocks of which every target keeps all values in registers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from einfuse.codegen.plan import BYTES, Dot, KernelPlan, Load, Op, Region, Store, operations
from einfuse.codegen.targets import TARGETS, Target
from einfuse.codegen.triton.layout import MATRIX, Layout
from einfuse.codegen.triton.slices import sliced

Precision = Literal["ieee", "tf32x3", "tf32"]

MOST_TILINGS = 6

CUBE = 1 << 14
"""Elements of the largest block of three ranks that is worth compiling: 64 registers of each of 256 threads, beside another such block."""

HELD = 192 * 256
"""Elements that loops may hold at once: 192 registers of each of 256 threads."""
UNROLLED = 5 << 18
"""Multiply-adds of products without matrix units that are worth compiling: 5,120 of each of 256 threads."""


@dataclass(frozen=True, slots=True)
class Options:
    """``None`` takes the default of `launch_options` for ``target``; the text runs on any target of the same maker.

    ``precision`` is that of fp32 matrix products: "ieee" is exact fp32 (without tensor cores on NVIDIA), "tf32x3" nearly so and
    for NVIDIA alone. ``descending`` starts a row of tiles at its end; ``None`` does so where the last programs are the largest.
    ``descriptors``: blocks come by the copy engine where tensors allow it; ``None`` does so on targets that have one.
    """

    target: Target = "sm_90"
    num_warps: int | None = None
    num_stages: int | None = None
    precision: Precision = "ieee"
    descending: bool | None = None
    descriptors: bool | None = None


def block_sizes(
    storage: str, width: int, gradients: int = 0, target: Target = "sm_90", precision: Precision = "ieee"
) -> tuple[int, int]:
    """A tile and a step for the widest feature rank, in a forward pass (two products a block) or in a kernel of a backward that adds up so many
    ``gradients`` (three products for one, four for two)."""
    if storage not in ("bf16", "f16"):
        width *= 1 if precision == "ieee" else 2  # matrix units take as many bytes, which are half as many numbers
    column = 0 if width <= 64 else 1 if width <= 128 else 2 if width <= 256 else 3
    if storage not in ("bf16", "f16") and precision == "ieee":
        return ((32, 32), (16 if gradients else 32, 16), (16, 16), (16, 16))[column]
    if (
        TARGETS[target].rows == 64
    ):  # programs of four warps and 64 rows overlap, one of eight and 128 does not, however lean its loop
        return (((64, 64), (64, 64), (64, 32), (16, 16)) if gradients else ((64, 128), (128, 128), (64, 32), (32, 16)))[column]
    return ((64, 32), (64, 32), (32, 16), (16, 16))[column] if gradients else ((128, 64), (128, 32), (64, 32), (32, 16))[column]


def tilings(
    storage: str, width: int, gradients: int = 0, target: Target = "sm_90", precision: Precision = "ieee"
) -> tuple[tuple[int, int], ...]:
    """Tiles and steps to try in turn until a kernel keeps its values in registers: those of `block_sizes`, then smaller ones.

    Larger blocks first, and among equals the larger tile: it is loaded once. Matrix products may need tiles of 64 (`Gpu.rows`). The
    smallest of all come last, with steps below what matrix products take: for kernels that compute over pairs and features at once.
    """
    tile, step = block_sizes(storage, width, gradients, target, precision)
    smaller = [(t, s) for t in _halved(tile) for s in _halved(step)]
    whole = TARGETS[target].rows if storage in ("bf16", "f16") or precision != "ieee" else MATRIX
    ladder = sorted(smaller, key=lambda b: (b[0] < whole, -b[0] * b[1], -b[0]))
    few = (MATRIX, min(64, step))  # for calls of few rows: decoding
    return tuple(dict.fromkeys((*ladder[: MOST_TILINGS - 1], few, ladder[-1], (MATRIX, MATRIX // 2), (MATRIX, MATRIX // 4))))


def holds(plan: KernelPlan) -> bool:
    """Whether a kernel is worth compiling: no block of three ranks (a value per pair and feature) that no registers hold.

    A compiler given such a block takes minutes and gigabytes to spill it, and so it does for products in fp32, which are unrolled, of many
    slices.
    """
    plan = sliced(plan)
    layout = Layout(plan)
    fits = _cube(plan, layout) <= CUBE and _held(plan, layout) <= HELD
    return fits and (plan.narrow != "f32" or _unrolled(plan, layout) <= UNROLLED)


def _halved(n: int) -> list[int]:
    return [n >> k for k in range(n.bit_length()) if n >> k >= MATRIX]


def launch_options(plan: KernelPlan, target: Target = "sm_90", precision: Precision = "ieee") -> dict[str, int]:
    """``num_warps`` and ``num_stages`` for the plan's blocks.

    NVIDIA: accumulators and score blocks are held in registers, up to 96 a thread beside operands and addresses; a product
    without tensor cores is unrolled, at most 256 multiply-adds a thread. Blocks are loaded up to 3 iterations ahead, as
    shared memory allows. AMD: four wavefronts may use 512 registers each; nothing is loaded ahead.
    """
    gpu = TARGETS[target]
    if gpu.amd:
        return {"num_warps": 4, "num_stages": 1}
    layout = Layout(plan)
    unrolled = max(
        (_volume(layout, d) for d in _dots(plan, layout) if _dtype(plan, d) == "f32" and precision == "ieee"), default=0
    )
    spread = 8 if _cube(plan, layout) >= 4096 else 4  # several such blocks live at once: all the registers there are
    if unrolled:
        return {"num_warps": min(16, max(8, _power(unrolled // (256 * 32)))), "num_stages": 1}
    warps = max(spread, 4 if _held(plan, layout) <= 96 * 128 else 8)
    if not plan.folds and plan.tile:  # rows alone: several blocks at once, of each of which a thread holds 32 numbers at most
        warps = min(16, max(warps, _power(_widest(layout, operations(plan)) // (32 * 32))))
    if gpu.rows == 64 and plan.tile and plan.folds and spread == 4:
        # a matrix instruction is 64 rows of four warps: others would do them again
        warps = min(warps, max(4, layout.blocks[plan.tile.rank] // 16))
    held, streamed = _resident(plan, layout), max(1, _streamed(plan, layout))
    stages = max(1, min(3, (gpu.shared - 24 * 1024 - held) // streamed))
    shared = (gpu.shared // 2 - 2048 - held) // streamed  # as many as leave room for a second program
    return {"num_warps": warps, "num_stages": shared if warps == 4 and 2 <= shared < stages else stages}


def fewer_warps(plan: KernelPlan, target: Target, warps: int) -> int:
    """The warps of a program where there are more programs than keep a GPU busy.

    In a tile of as many rows as the smallest matrix product has, warps share the columns of a step: each does for itself what is done once a
    row. They pay where they hide what few programs wait for.
    """
    layout = Layout(plan)
    short = plan.tile is not None and layout.blocks[plan.tile.rank] == MATRIX and plan.narrow != "f32" and bool(plan.folds)
    return 2 if short and not TARGETS[target].amd and warps == 4 and _held(plan, layout) <= 192 * 64 else warps


def _unrolled(plan: KernelPlan, layout: Layout) -> int:
    """Multiply-adds of the products in a kernel's text."""
    return sum(_volume(layout, d) for d in _dots(plan, layout))


def _power(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _dtype(plan: KernelPlan, dot: Dot) -> str:
    return plan.narrow if dot.narrow else "f32"


def _dots(plan: KernelPlan, layout: Layout) -> list[Dot]:
    bodies: list[Region] = [p.body for f in plan.folds for p in f.phases]
    bodies += plan.regions
    return [op for body in bodies for op in body if isinstance(op, Dot) and layout.multiplies(op)]


def _area(layout: Layout, dims: tuple[str, ...]) -> int:
    area = 1
    for rank in dims:
        area *= layout.blocks[rank]
    return area


def _volume(layout: Layout, dot: Dot) -> int:
    return _area(layout, dot.out.dims) * layout.blocks[dot.rank]


def _held(plan: KernelPlan, layout: Layout) -> int:
    """Elements alive at once in the fullest loop: carried states, and the products of an iteration that no state holds, or its widest block."""
    most = 0
    for fold in plan.folds:
        carried = sum(_area(layout, s.value.dims) for s in fold.states)
        for phase in fold.phases:
            kept = {u.name for u in phase.updates}
            dots = [op for op in phase.body if isinstance(op, Dot) and op.out.name not in kept]
            widest = _widest(layout, phase.body)
            most = max(most, carried + max(widest, sum(_area(layout, d.out.dims) for d in dots)))
    if not plan.folds:
        most = sum(_area(layout, d.out.dims) for d in _dots(plan, layout))
    return most


def _widest(layout: Layout, ops: Iterable[Op]) -> int:
    """Elements of the largest block that operations give."""
    return max((_area(layout, op.out.dims) for op in ops if not isinstance(op, Store)), default=0)


def _cube(plan: KernelPlan, layout: Layout) -> int:
    """Elements of the largest block of three ranks or more, sums that no matrix product computes included."""
    products = [(*op.out.dims, op.rank) for op in operations(plan) if isinstance(op, Dot) and not layout.multiplies(op)]
    blocks = [op.out.dims for op in operations(plan) if not isinstance(op, Store)] + products
    return max((_area(layout, dims) for dims in blocks if len(dims) > 2), default=0)


def _bytes(plan: KernelPlan, layout: Layout, region: Region) -> int:
    """The size in memory of the blocks of two or more ranks that a region loads."""
    storage = {t.name: BYTES[t.storage] for t in plan.tensors}
    loads = [op for op in region if isinstance(op, Load) and len(op.out.dims) > 1]
    return sum(_area(layout, op.out.dims) * storage[op.tensor] for op in loads)


def _streamed(plan: KernelPlan, layout: Layout) -> int:
    """What an iteration loads: a block of a fold, or a point of a run where there is no fold."""
    loops = [p.body for f in plan.folds for p in f.phases] or plan.regions
    return max((_bytes(plan, layout, body) for body in loops), default=0)


def _resident(plan: KernelPlan, layout: Layout) -> int:
    if not plan.folds:
        return 0
    return sum(_bytes(plan, layout, s) for s in plan.regions)
