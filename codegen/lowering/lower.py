"""Lowers a scheduled cascade to a `KernelPlan`: statements become block operations in SSA form.

What is decided here, once for every back end: which sums of products are matrix products, where masks are applied (to the factor
that shares their ranks, as the reducer's identity), how a state moves when a statistic moves (evaluate at the new reference, re-base
the old value, and leave a state alone whose statistic is still an identity), and what leaves the loop because it does not change in it.

From the whole to its parts: this file, `lowering.folds`, `lowering.states` and `lowering.statements`, `lowering.expressions`,
`lowering.blocks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

from einfuse.codegen import plan as kp
from einfuse.codegen.lowering.arguments import arguments
from einfuse.codegen.lowering.blocks import Blocks
from einfuse.codegen.lowering.expressions import Expressions
from einfuse.codegen.lowering.folds import fold
from einfuse.codegen.lowering.sizes import Sizes
from einfuse.codegen.lowering.statements import einsum
from einfuse.ir import Cascade, Einsum, Fold
from einfuse.ir.text import show_body

Steps = tuple[kp.Region | kp.Fold, ...]


def lower(cascade: Cascade, storage: Mapping[str, kp.Storage], sizes: Mapping[str, int], bare: bool = False) -> kp.KernelPlan:
    """The kernel of ``cascade``. ``bare``: in loops, indices that ``made`` tables give have no bounds; the back end computes nothing at points
    that do not exist.

    ``storage`` gives the storage dtype of every input tensor and output; ``sizes`` at least the sizes of the feature ranks, which
    become constants of the kernel. Raises SpecError for a cascade that no single kernel computes.
    """
    known = Sizes(cascade, sizes)
    blocks = Blocks(_order(cascade, known.features), {t.name for t in cascade.inputs})
    e = Expressions(cascade, known, blocks, bare)
    steps = _steps(e)
    given = arguments(e, storage, _loaded(steps))
    return kp.KernelPlan(
        name=cascade.name,
        equations=show_body(cascade),
        ambient=given.ambient,
        tile=next((known.block(rank, width) for rank, width in cascade.tile), None),
        features=given.features,
        tensors=given.tensors,
        params=given.params,
        sizes=given.sizes,
        steps=steps,
        compute=given.compute,
        narrow=given.narrow,
    )


def _order(cascade: Cascade, features: tuple[str, ...]) -> tuple[str, ...]:
    """The ranks in the order of `KernelPlan.order`: the tile, folds, features."""
    tile = tuple(rank for rank, _ in cascade.tile[:1])
    folds = tuple(dict.fromkeys(x.rank for x in cascade.folds))
    return tile + tuple(f for f in folds if f not in tile) + features


def _steps(e: Expressions) -> Steps:
    """The statements of the cascade in order, and the stores of its outputs."""
    region = e.blocks.scope
    steps: list[kp.Region | kp.Fold] = []
    for x in e.cascade.body:
        match x:
            case Fold():
                loop = fold(e, x)
                steps += [tuple(region.ops), loop]  # what the loop hoisted comes before it
                region.ops = []
            case Einsum():
                _statement(e, x)
            case _:
                assert_never(x)
    states = {y.target for x in e.cascade.folds for y in x.states}
    for name in e.cascade.outs:
        if name in states:
            e.store(name, e.env[name])
    return _merged([*steps, tuple(region.ops)])


def _statement(e: Expressions, x: Einsum) -> None:
    value = einsum(e, x)
    if x.target in e.cascade.outs:
        live = None if x.mask is None else e.value(x.mask, "live")
        value = e.blocks.masked(value, live, 0.0)
    e.define(x.target, x.ranks, value)
    if x.target in e.cascade.outs:
        e.store(x.target, value)


def _merged(steps: Sequence[kp.Region | kp.Fold]) -> Steps:
    """Adjacent regions joined, empty ones dropped."""
    out: list[kp.Region | kp.Fold] = []
    for s in steps:
        if isinstance(s, tuple) and out and isinstance(out[-1], tuple):
            out[-1] = out[-1] + s
        elif s:
            out.append(s)
    return tuple(out)


def _loaded(steps: Steps) -> Iterator[str]:
    """The tensors that any operation loads."""
    return (o.tensor for s in steps for r in kp.code(s) for o in r if isinstance(o, kp.Load))
