"""`Arguments`: what a kernel is given at launch, read off the operations it is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from einfuse.codegen import plan as kp
from einfuse.codegen.lowering.expressions import Expressions
from einfuse.codegen.precision import Compute, accumulation, precision
from einfuse.ir import DType


@dataclass(frozen=True, slots=True)
class Arguments:
    """The fields that kinds of plans have in common; see `KernelPlan`."""

    ambient: tuple[kp.Block, ...]
    features: tuple[kp.Block, ...]
    tensors: tuple[kp.Arg, ...]
    params: tuple[tuple[str, DType], ...]
    sizes: tuple[str, ...]
    compute: Compute
    narrow: kp.Storage


def arguments(e: Expressions, storage: Mapping[str, kp.Storage], loaded: Iterable[str]) -> Arguments:
    """The arguments of a kernel that loads these tensors and stores the outputs of its cascade."""
    c, read = e.cascade, set(loaded)
    given = [t for t in c.inputs if not t.param and t.name in read]
    tensors = [kp.Arg(t.name, len(t.axes), storage[t.name]) for t in given]
    tensors += [kp.Arg(n, _axes(e, n), storage[n], out=True) for n in c.outs]
    compute, stored = accumulation(c, storage), precision(c, storage)
    blocked = [
        e.sizes.of(r) for r in (*c.over, *e.blocks.order)
    ]  # a program reads these sizes, whether or not an expression does
    return Arguments(
        ambient=tuple(replace(e.sizes.block(r, 1), turns=c.rank(r).kind == "turn") for r in c.over),
        features=tuple(e.sizes.block(r, e.sizes.feature(r)) for r in e.sizes.features),
        tensors=tuple(tensors),
        params=tuple(sorted(e.params.items())),
        sizes=tuple(sorted(e.sizes.launch | {n for n in blocked if isinstance(n, str)})),
        compute=compute,
        narrow=stored if stored in ("bf16", "f16") else compute,
    )


def _axes(e: Expressions, out: str) -> int:
    place = e.cascade.place(out)
    return len(e.cascade.over) + len(e.ranks[out]) if place is None else len(place.axes)
