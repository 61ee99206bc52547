"""Prints regions: one function for each kind of op of a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from einfuse.codegen.plan import Const, Coordinate, Dot, Load, Map, Op, Param, Reduce, Region, Size, Store, reads
from einfuse.codegen.triton.arithmetic import print_dot, print_map, print_reduce
from einfuse.codegen.triton.body import Body, Ref, number
from einfuse.codegen.triton.memory import print_load, print_store


def print_region(body: Body, region: Region, elsewhere: Set[str] = frozenset()) -> None:
    """Print the ops in order; ``elsewhere`` are the names that other regions read."""
    body.inlined = _inlined(region, elsewhere)
    for op in region:
        _print(body, op)


def _inlined(region: Region, elsewhere: Set[str]) -> frozenset[str]:
    """Ints and conditions that one function of this region reads: written inside its expression, without a name."""
    uses = Counter(v.name for op in region for v in reads(op))
    once = {v.name for op in region if isinstance(op, Map) for v in op.args if uses[v.name] == 1} - elsewhere
    return frozenset(op.out.name for op in region if isinstance(op, Map) and op.out.dtype != "float" and op.out.name in once)


def _print(body: Body, op: Op) -> None:
    match op:
        case Const():
            dtype = op.out.dtype
            body.env[op.out.name] = Ref(number(op.value, dtype), (), dtype, op.value, nonnegative=op.value >= 0)
        case Coordinate():
            body.env[op.out.name] = body.env[f"coordinate {op.rank}"]
        case Size():
            body.env[op.out.name] = _size(body, op)
        case Param():
            body.env[op.out.name] = body.env[f"param {op.name}"]
        case Load():
            print_load(body, op)
        case Map():
            print_map(body, op)
        case Reduce():
            print_reduce(body, op)
        case Dot():
            print_dot(body, op)
        case Store():
            print_store(body, op)


def _size(body: Body, op: Size) -> Ref:
    rank, _, end = op.name.partition(".")
    if end == "lo":
        return Ref(body.starts[rank], (), "int", nonnegative=True)
    if end == "hi" and rank in body.layout.folds:
        start, limit = body.starts[rank], body.extent(body.layout.size(rank))
        return Ref(f"tl.minimum({start} + {body.width(rank)}, {limit})", (), "int", nonnegative=True)
    return body.env[f"end {rank}" if end else f"size {op.name}"]
