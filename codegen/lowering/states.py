"""The next value of a fold's state: its old value moved to the references that moved, and the share of this block.

A state is moved by its carry, evaluated at the old statistics and the new ones. A largest value that is minus infinity, because nothing
or nothing but that has been seen, is 0 as a reference: no difference can be taken from it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from einfuse.codegen.lowering.expressions import Expressions
from einfuse.codegen.lowering.statements import signed
from einfuse.codegen.plan import Value
from einfuse.ir import Expr, Fold, State, call, conjunction, size
from einfuse.ir import index as coordinate
from einfuse.ir.expr import LEAVES, TRUE, indices, names, reads, substitute, walk
from einfuse.ir.projection import diagonal, projection
from einfuse.ir.references import floored, reviving, vanishes
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
    if y.reducer.sums:
        return _accumulated(e, y, old, at)
    share, rank = e.value(y.map), at.fold.rank
    if rank in share.dims or at.mask is not None:
        share = e.blocks.masked(e.blocks.as_float(share), at.mask, y.reducer.identity)
        share = e.blocks.reduce(y.red, share, rank, f"{y.target}_block")
    return e.blocks.map(y.reducer.combine, old, share, name=f"{y.target}_new")


# -- references ------------------------------------------------------------------------------------------------------------------


def reference(e: Expressions, y: State, value: Value) -> Value:
    """The value of a state as differences from it are taken: a largest value of nothing, or of nothing but minus infinity, counts as 0."""
    return e.blocks.unlike(value, y.reducer.identity) if y.reducer.extreme else value


def finite(e: Expressions, f: Fold, x: Expr, value: Value) -> Value:
    """The ``value`` of ``x`` as differences from it are taken: 0 where it may be no number."""
    return value if floored(f, x) else e.blocks.finite(value)


def referring(e: Expressions, f: Fold, x: Expr, raw: Mapping[str, Value], op: str = "load") -> Expr:
    """``x`` with its largest parts that are of a row alone, such as ``max(m, 0)``, as references: of the largest value as it is, and 0
    where that may be no number. ``raw`` tells statements as they are, whose values ``x`` reads by ``op``."""
    states = {y.target for y in f.states if y.reducer.extreme}
    columns = {y.target for y in f.einsums if f.rank in y.ranks}
    other = {"load": "new", "new": "load"}[op]

    def whole(part: Expr) -> Expr | None:
        if part.op in LEAVES or not states & names(part, op) or states & names(part, other):
            return None
        if f.rank in indices(part) or reads(part) & columns:
            return None
        name = e.blocks.fresh("reference")
        e.define(name, (), finite(e, f, part, e.value(part, env=raw, new=raw)))
        return Expr("load", (), name)

    return substitute(x, whole) if states else x


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
    """The old value of a state moved to the new references."""
    old, blocks = at.olds[y.target], e.blocks
    if y.carry is None:
        return old
    own = Expr("load", tuple(map(coordinate, y.ranks)), y.target)
    by = y.carry.op in ("*", "+") and y.carry.args[0] == own and own not in set(walk(y.carry.args[1]))
    moving = y.carry.args[1] if by else y.carry
    none = blocks.const(1.0 if y.carry.op == "*" else 0.0) if by else old
    dead = reviving(at.fold, y)
    before = _before(e, moving, at)
    if not vanishes(at.fold, y, dead):
        before |= {z.target: reference(e, z, before[z.target]) for z in dead}
        moving = referring(e, at.fold, moving, {**before, **at.olds})
    moving = referring(e, at.fold, moving, {**e.env, **at.news}, "new")
    moved = e.value(moving, env={**e.env, **before}, new=e.env)
    if dead:
        moved = blocks.map("select", _still(e, y, dead, moved, at), none, moved, name="move")
    return blocks.map(y.carry.op, old, moved) if by else moved


def _before(e: Expressions, carry: Expr, at: Block) -> dict[str, Value]:
    """What statements stood for before this block: old states, and lets of them, which are finite."""
    scalars = lets(at.fold)
    known = [z for z in at.fold.einsums if z.target in scalars]
    moving = reads(carry) | names(carry, "new")
    for z in reversed(known):  # a let may be made of other lets
        if z.target in moving:
            moving |= reads(z.map)
    env = {**e.env, **at.olds}
    for z in known:
        if z.target in moving:
            env[z.target] = finite(e, at.fold, z.map, e.value(z.map, env=env))
    return env


def _still(e: Expressions, y: State, dead: Sequence[State], moved: Value, at: Block) -> Value:
    """Where there is nothing to move: a statistic was infinite, and what was added up then is 0, or no correction leads from there."""
    blocks = e.blocks
    here = [blocks.map("==", at.olds[z.target], blocks.const(z.reducer.identity)) for z in dead]
    infinite = functools.reduce(lambda a, b: blocks.map("or", a, b), here)
    if vanishes(at.fold, y, dead):
        return infinite
    return blocks.map("and", infinite, blocks.map("not", blocks.is_finite(moved)))
