"""The next value of a fold's state: its old value moved to the references that moved, and the share of this block.

A state is moved by its carry, evaluated at the old statistics and the new ones. It is left alone while the statistic it depends on is
still an identity: nothing has been seen then, and the carry of nothing is no number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from einfuse.codegen.lowering.expressions import Expressions
from einfuse.codegen.lowering.statements import signed
from einfuse.codegen.plan import Value
from einfuse.ir import MONOIDS, Einsum, Expr, Fold, State
from einfuse.ir import index as coordinate
from einfuse.ir.expr import names, reads, walk
from einfuse.ir.statements import lets


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a fold: the states before it (``olds``), those known after it (``news``), and the mask, None where all points live."""

    fold: Fold
    olds: Mapping[str, Value]
    mask: Value | None
    news: dict[str, Value] = field(default_factory=dict)


def updated(e: Expressions, y: State, at: Block) -> Value:
    """The next value of a state."""
    old = _carried(e, y, at)
    if y.red == "sum":
        return _accumulated(e, y, old, at)
    share, rank = e.value(y.map), at.fold.rank
    if rank in share.dims or at.mask is not None:
        share = e.blocks.masked(e.blocks.as_float(share), at.mask, MONOIDS[y.red])
        share = e.blocks.reduce(y.red, share, rank, f"{y.target}_block")
    return e.blocks.map({"max": "max", "min": "min", "any": "max", "prod": "*"}[y.red], old, share, name=f"{y.target}_new")


# -- sums ------------------------------------------------------------------------------------------------------------------------


def _accumulated(e: Expressions, y: State, old: Value, at: Block) -> Value:
    """``old`` and the sum of the block. What spans no feature is the weight of what does, and is masked."""
    blocks, rank, name = e.blocks, at.fold.rank, f"{y.target}_new"
    sign, parts = signed(y.map)
    values = [blocks.as_float(e.value(p)) for p in parts]
    whole = [v for v in values if any(d in e.sizes.features for d in v.dims)]
    weights = [v for v in values if v not in whole]
    weight = blocks.product(weights) if weights else None
    if sign < 0:
        weight = blocks.map("neg", weight) if weight is not None else blocks.const(-1.0)
    if not whole:
        assert weight is not None, "a sum has a map"
        return blocks.map("+", old, _summed(e, y, blocks.masked(weight, at.mask, 0.0), at), name=name)
    vectors = blocks.product(whole)
    if at.mask is not None:
        weight = blocks.masked(weight if weight is not None else blocks.const(1.0), at.mask, 0.0)
        vectors = _clean(e, vectors, at.mask, rank)
    if weight is None:
        return blocks.map("+", old, _summed(e, y, vectors, at), name=name)
    if all(len(v.dims) == 2 and rank in v.dims for v in (weight, vectors)):
        return blocks.dot(weight, vectors, rank, name, old)
    return blocks.map("+", old, _summed(e, y, blocks.map("*", weight, vectors), at), name=name)


def _clean(e: Expressions, vectors: Value, mask: Value, rank: str) -> Value:
    """``vectors`` with 0 where 0 times whatever the padding, or an empty row, computes would not be 0."""
    if rank not in vectors.dims or vectors.name in e.loaded:
        return vectors
    inside = mask if set(mask.dims) <= set(vectors.dims) else None
    inside = inside or e.blocks.map("<", e.blocks.coordinate(rank), e.extent(rank), name="inside")
    return e.blocks.masked(vectors, inside, 0.0)


def _summed(e: Expressions, y: State, share: Value, at: Block) -> Value:
    """The sum of ``share`` over the points of the block."""
    if at.fold.rank in share.dims:
        return e.blocks.reduce("sum", share, at.fold.rank, f"{y.target}_block")
    return e.blocks.map("*", share, e.blocks.const(float(at.fold.step)))  # constant over a full block


# -- old values ------------------------------------------------------------------------------------------------------------------


def _carried(e: Expressions, y: State, at: Block) -> Value:
    """The old value of a state moved to the new references; a statistic still at its identity has nothing to move."""
    old, blocks = at.olds[y.target], e.blocks
    if y.carry is None:
        return old
    env = _before(e, y.carry, at)
    new = {**at.news, **{n: e.env[n] for n in names(y.carry, "new") if n not in at.news}}
    dead = _dead(e, y, at)
    if dead is None:
        return e.value(y.carry, env=env, new=new)
    own = Expr("load", tuple(map(coordinate, y.ranks)), y.target)
    if y.carry.op in ("*", "+") and y.carry.args[0] == own and own not in set(walk(y.carry.args[1])):
        factor = e.value(y.carry.args[1], env=env, new=new)
        factor = blocks.map("select", dead, blocks.const(1.0 if y.carry.op == "*" else 0.0), factor, name="move")
        return blocks.map(y.carry.op, old, factor)
    return blocks.map("select", dead, old, e.value(y.carry, env=env, new=new))


def _before(e: Expressions, carry: Expr, at: Block) -> dict[str, Value]:
    """What statements stood for before this block: old states, and lets of them, which are finite as references are."""
    scalars = lets(at.fold)
    known = [z for z in at.fold.body if isinstance(z, Einsum) and z.target in scalars]
    moving = reads(carry) | names(carry, "new")
    for z in reversed(known):  # a let may be made of other lets
        if z.target in moving:
            moving |= reads(z.map)
    env = {**e.env, **at.olds}
    for z in known:
        if z.target in moving:
            env[z.target] = e.blocks.finite(e.value(z.map, env=env))
    return env


def _dead(e: Expressions, y: State, at: Block) -> Value | None:
    """Whether any statistic that the carry reads is still an identity; None where it reads none that can be."""
    assert y.carry is not None, "a state without references is never moved"
    kinds = {z.target: z.red for z in at.fold.body if isinstance(z, State)}
    dead: Value | None = None
    for name in sorted(reads(y.carry) & set(kinds)):
        if name != y.target and kinds[name] in ("max", "min"):
            here = e.blocks.map("==", at.olds[name], e.blocks.const(MONOIDS[kinds[name]]))
            dead = here if dead is None else e.blocks.map("or", dead, here)
    return dead
