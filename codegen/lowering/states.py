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
from einfuse.ir import MONOIDS, Einsum, Expr, Fold, State, call, conjunction, size
from einfuse.ir import index as coordinate
from einfuse.ir.expr import TRUE, names, reads, walk
from einfuse.ir.projection import diagonal, projection
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
    if weight is None:
        return blocks.map("+", old, _summed(e, y, vectors, at), name=name)
    where = _alive(e, vectors, at)
    if all(len(v.dims) == 2 and rank in v.dims for v in (weight, vectors)):
        if where is not None and where.dims != (rank,):
            vectors, where = blocks.masked(vectors, where, 0.0), None
        return blocks.dot(weight, vectors, rank, name, old, where)
    product = blocks.map("*", weight, blocks.masked(vectors, where, 0.0))
    if at.mask is not None and not set(at.mask.dims) <= set(vectors.dims):
        product = blocks.masked(product, at.mask, 0.0)
    return blocks.map("+", old, _summed(e, y, product, at), name=name)


def _alive(e: Expressions, vectors: Value, at: Block) -> Value | None:
    """Which points of ``vectors`` exist for any row of the tile; None where each does.

    At the others weights are 0, and 0 times whatever memory without a use, the padding or an empty row holds need not be 0.
    """
    f, mask = at.fold, at.mask
    if mask is None or f.rank not in vectors.dims or (f.mask is None and vectors.name in e.loaded):
        return None
    hidden = [r for r in mask.dims if r not in vectors.dims]
    if not hidden:
        return mask
    inside = call("<", coordinate(f.rank), size(e.cascade.rank(f.rank).size))
    shadow = projection(e.cascade, f.mask or TRUE, hidden[0]) if len(hidden) == 1 else None
    if shadow is not None:
        whole = conjunction(shadow, inside)
        return None if whole == inside and vectors.name in e.loaded else e.value(whole or inside, "alive")
    own = diagonal(f.mask or TRUE, hidden[0], f.rank) if len(hidden) == 1 else None
    instead = None if own is None else e.value(conjunction(own, inside) or inside, "seen")
    for rank in hidden:
        mask = e.blocks.some(mask, rank, "alive", instead, (e.sizes.of(rank), e.sizes.of(f.rank)))
    return mask


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
