"""Folds: a loop over a rank in phases, those whose blocks lie wholly inside the predicate without its mask."""

from __future__ import annotations

from dataclasses import replace

from einfuse.codegen import plan as kp
from einfuse.codegen.lowering.blocks import Scope
from einfuse.codegen.lowering.expressions import Expressions
from einfuse.codegen.lowering.statements import einsum
from einfuse.codegen.lowering.states import Block, finite, reference, referring, updated
from einfuse.codegen.plan import Value
from einfuse.ir import Fold, State, call, conjunction
from einfuse.ir import index as coordinate
from einfuse.ir import size as size_of
from einfuse.ir.expr import divisor, indices
from einfuse.ir.statements import lets


def fold(e: Expressions, f: Fold) -> kp.Fold:
    """The loop of ``f``; what it hoists stands in the open region. Its states are defined from here on."""
    blocks = e.blocks
    states = f.states
    looped = {x.rank for x in e.cascade.folds}
    assert not any(looped & set(y.ranks) for y in states), "canonicalise refuses what is held along a loop"
    for y in states:
        e.define(y.target, y.ranks, Value(blocks.fresh(y.target), blocks.dims(y.ranks), "float"))
    olds = {y.target: e.env[y.target] for y in states}
    size, starts = e.sizes.of(f.rank), [x for r in f.ranges for x in (r.lo, r.full_lo, r.full_hi)]
    if all(divisor(x) % f.step == 0 for x in starts):
        e.steps[f.rank] = f.step
    even = f.rank in e.steps and isinstance(size, int) and size % f.step == 0
    full = _body(e, f, olds, False, even)
    names_of_full = {op.out.name for op in full[0] if not isinstance(op, kp.Store)}
    blocks.taken -= names_of_full  # phases are siblings: the other one uses the same names
    blocks.siblings = names_of_full
    masked = _body(e, f, olds, True, even)
    blocks.taken |= names_of_full
    blocks.siblings = set()
    e.steps.pop(f.rank, None)
    bounds = Scope(outer=blocks.scope)
    with blocks.inside(bounds):
        phases = _phases(e, f, full, masked)
    return kp.Fold(
        rank=f.rank,
        step=f.step,
        states=tuple(kp.State(olds[y.target], y.reducer.identity) for y in states),
        bounds=tuple(bounds.ops),
        phases=tuple(phases),
        tabulated=f.tabulated,
        table_ranks=_table_ranks(e, f),
        size=size,
        even=even,
    )


# -- phases ----------------------------------------------------------------------------------------------------------------------

_Body = tuple[kp.Region, tuple[Value, ...]]
"""The operations of an iteration, and the states' values at its end."""


def _phases(e: Expressions, f: Fold, full: _Body, masked: _Body) -> list[kp.Phase]:
    """The runs of blocks of a fold, in order; where tables list them, those without a mask before those with one."""
    phases: list[kp.Phase] = []
    if f.tabulated:
        zero = e.blocks.const(0)
        phases = [kp.Phase(zero, zero, *full, "full"), kp.Phase(zero, zero, *masked, "masked")]
    for r in f.ranges:
        lo, full_lo, full_hi, hi = (e.value(x, env={}) for x in (r.lo, r.full_lo, r.full_hi, r.hi))
        for start, stop, body, label in (
            (lo, full_lo, masked, "masked"),
            (full_lo, full_hi, full, "full"),
            (full_hi, hi, masked, "masked"),
        ):
            if start != stop:
                phases.append(kp.Phase(start, stop, *body, label))
    return phases


def _table_ranks(e: Expressions, f: Fold) -> tuple[str, ...]:
    """The ambient ranks that the live blocks of a tabulated fold depend on: folds over a rank share one table."""
    if not f.tabulated:
        return ()
    masks = [x.mask for x in e.cascade.folds if x.rank == f.rank and x.tabulated]
    shared = set().union(*map(indices, masks))
    return tuple(r for r in e.cascade.over if r in shared)


# -- an iteration ----------------------------------------------------------------------------------------------------------------


def _body(e: Expressions, f: Fold, olds: dict[str, Value], masked: bool, even: bool) -> _Body:
    """One phase's loop body. What it defines is forgotten after it: every phase defines it anew, and the states keep their names."""
    blocks, before = e.blocks, dict(e.env)
    scope = Scope(outer=blocks.scope, rank=f.rank, mine={v.name for v in olds.values()})
    with blocks.inside(scope):
        for name in olds:
            del e.env[name]
        scalars = lets(f)
        at = Block(f, olds, _mask(e, f, even) if masked else None)
        e.existing = (f.rank, at.mask)
        for y in f.body:
            if y.target in scalars:
                value = finite(e, f, y.map, e.value(y.map, "t", {**e.env, **at.news}))
                e.define(y.target, y.ranks, value)
                continue
            y = replace(y, map=referring(e, f, y.map, {**e.env, **at.news}))
            if isinstance(y, State):
                at.news[y.target] = updated(e, y, at)
                e.env[y.target] = reference(e, y, at.news[y.target])
                continue
            value = einsum(e, y)
            e.define(y.target, y.ranks, value)
            if y.target in e.cascade.outs and f.rank in y.ranks:
                every = blocks.broadcast(value, {r for r in y.ranks if r not in value.dims}, y.target)
                e.store(y.target, blocks.masked(every, at.mask, 0.0))
    e.env, e.existing = before, None
    return tuple(scope.ops), tuple(at.news[n] for n in olds)


def _mask(e: Expressions, f: Fold, even: bool) -> Value | None:
    """Which points of a block exist and satisfy the predicate; ``even`` as in `kp.Fold`."""
    inside = None if even else call("<", coordinate(f.rank), size_of(e.cascade.rank(f.rank).size))
    whole = conjunction(f.mask, inside)
    return None if whole is None else e.value(whole, "live")
