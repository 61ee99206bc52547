"""`trips`: how often a program of a kernel goes through each of its loops, on average over its tiles, from the plan's own bounds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch

from einfuse.codegen import KernelPlan
from einfuse.codegen.plan import FUNCTIONS, Const, Coordinate, Fold, Load, Map, Op, Param, Size, code
from einfuse.ir import Scalar
from einfuse.runtime.given import Given

TILES, POINTS = 64, 16
"""Tiles and ambient points that are looked at, evenly spaced."""


def trips(plan: KernelPlan, given: Given, tables: Mapping[str, torch.Tensor]) -> list[tuple[str, float | None]]:
    """Label and mean number of iterations of each loop of the text, in its order; None where a bound is not told by what is at hand."""
    points = list(itertools.product(*(_spread(_extent(b.size, given), POINTS) for b in plan.ambient)))[:: _every(plan, given)]
    tiles = _spread(math.ceil(_extent(plan.tile.size, given) / plan.tile.block), TILES) if plan.tile else [0]
    seen = [_program(plan, given, tables, point, tile) for point in points for tile in tiles]
    return [(label, _mean([row[n][1] for row in seen])) for n, (label, _) in enumerate(seen[0])]


def _every(plan: KernelPlan, given: Given) -> int:
    count = math.prod(len(_spread(_extent(b.size, given), POINTS)) for b in plan.ambient)
    return max(1, count // POINTS)


def _spread(n: int, most: int) -> list[int]:
    return sorted({k * max(0, n - 1) // max(1, min(most, n) - 1) for k in range(min(most, n))})


def _mean(values: Sequence[float | None]) -> float | None:
    known = [x for x in values if x is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _extent(size: int | str, given: Given) -> int:
    return size if isinstance(size, int) else given.sizes[size]


def _program(
    plan: KernelPlan, given: Given, tables: Mapping[str, torch.Tensor], point: Sequence[int], tile: int
) -> list[tuple[str, float | None]]:
    """The loops of one program."""
    known: dict[str, Scalar] = {}
    place = {b.rank: at for b, at in zip(plan.ambient, point, strict=True)}
    out: list[tuple[str, float | None]] = []
    for step in plan.steps:
        for op in code(step)[0]:
            value = _scalar(op, known, plan, given, place, tile)
            if value is not None:
                known[op.out.name] = value  # type: ignore[union-attr]  # stores have no value
    for f in plan.folds:
        if f.tabulated:
            row = _row(plan, f, given, place, tile)
            count = tables[f"{f.rank}_count"].reshape(-1, 2)[row]
            out += [(p.label, None if count.is_meta else float(count[n])) for n, p in enumerate(f.phases)]
            continue
        for p in (p for p in f.phases if p.lo != p.hi):
            lo, hi = known.get(p.lo.name), known.get(p.hi.name)
            out.append((p.label, None if lo is None or hi is None else float(max(0, math.ceil((hi - lo) / f.step)))))
    return out


def _row(plan: KernelPlan, step: Fold, given: Given, place: Mapping[str, int], tile: int) -> int:
    row = 0
    for b in plan.ambient:
        if b.rank in step.table_ranks:
            row = row * _extent(b.size, given) + place[b.rank]
    return row * (math.ceil(_extent(plan.tile.size, given) / plan.tile.block) if plan.tile else 1) + tile


def _scalar(
    op: Op, known: Mapping[str, Scalar], plan: KernelPlan, given: Given, place: Mapping[str, int], tile: int
) -> Scalar | None:
    """The value of an operation that gives one number, where it is known."""
    match op:
        case Const(value=value):
            return value
        case Size(name=name) if "." not in name:
            return given.sizes[name]
        case Size(name=name) if plan.tile is not None and name.partition(".")[0] == plan.tile.rank:
            lo, size = tile * plan.tile.block, _extent(plan.tile.size, given)
            return lo if name.endswith(".lo") else min(lo + plan.tile.block, size)
        case Coordinate(rank=rank) if rank in place:
            return place[rank]
        case Param(name=name):
            return given.numbers[name]
        case Load(out=out, tensor=tensor, index=index) if not out.dims and all(v.name in known for v in index):
            held = given.tensors[tensor]
            return None if held.is_meta else held[tuple(int(known[v.name]) for v in index)].item()
        case Map(out=out, fn=fn, args=args) if not out.dims and all(a.name in known for a in args):
            values = [known[a.name] for a in args]
            return FUNCTIONS[fn].fold(*values)
    return None
