"""Lowers a blocked scan to a `ScanPlan`: each statement becomes matrix products, sums along a rank, or arithmetic at every point.

Decided here for every back end: which sums of products are matrix products, where conditions go (into the factor that has their
ranks), and what is read at the other point of a pair (see `points`).
"""

from __future__ import annotations

from collections.abc import Mapping

from einfuse.codegen import plan as kp
from einfuse.codegen.lowering.arguments import arguments
from einfuse.codegen.lowering.blocks import Scope
from einfuse.codegen.lowering.sizes import Sizes
from einfuse.codegen.plan import Value
from einfuse.codegen.plan.scan import Op, Region, ScanPlan, State, needed, reads
from einfuse.codegen.scan.points import PairExpressions, ScanBlocks
from einfuse.codegen.scan.statements import shaped, statement
from einfuse.ir import Cascade, Fold
from einfuse.ir import State as IrState
from einfuse.ir.text import show_body


def lower(cascade: Cascade, storage: Mapping[str, kp.Storage], sizes: Mapping[str, int]) -> ScanPlan:
    """The plan of a blocked scan (see `ir.passes.chunk`).

    ``storage`` gives the storage dtype of every input tensor and output; ``sizes`` at least the sizes of the feature ranks, which
    become constants of the kernel. Raises SpecError.
    """
    (f,) = cascade.folds
    known = Sizes(cascade, sizes)
    order = (f.rank, *f.aligned, *known.features)
    e = PairExpressions(cascade, known, ScanBlocks(order, {t.name for t in cascade.inputs}, fold=f))
    before, body, after, states = _regions(e, f)
    loaded = (op.tensor for op in (*before, *body, *after) if isinstance(op, kp.Load))
    given = arguments(e, storage, loaded)
    return ScanPlan(
        name=cascade.name,
        equations=show_body(cascade),
        ambient=given.ambient,
        rank=f.rank,
        others=f.aligned,
        count=f.count,
        size=known.of(f.rank),
        step=f.step,
        reverse=f.reverse,
        features=given.features,
        tensors=given.tensors,
        params=given.params,
        sizes=given.sizes,
        states=states,
        before=before,
        body=body,
        after=after,
        compute=given.compute,
        narrow=given.narrow,
    )


def _regions(e: PairExpressions, f: Fold) -> tuple[Region, Region, Region, tuple[State, ...]]:
    """What is done once before the blocks, for each of them, and once after them, less what nothing needs; and the states."""
    blocks, outs = e.blocks, e.cascade.outs
    states = f.states
    inits = [shaped(e, e.value(y.init, env={}) if y.init is not None else blocks.const(0.0), y) for y in states]
    olds = {y.target: Value(blocks.fresh(y.target), blocks.dims(y.ranks), "float") for y in states}
    for y in states:
        e.define(y.target, y.ranks, olds[y.target])
    before = blocks.scope
    body = Scope(outer=before, rank=f.rank, mine={v.name for v in olds.values()})
    with blocks.inside(body):
        updates = _block(e, f)
    after = Scope(outer=before)
    with blocks.inside(after):
        e.env |= olds
        for y in states:
            if y.target in outs:
                _put(e, y.target)
    found = tuple(State(olds[y.target], init, updates[y.target]) for y, init in zip(states, inits, strict=True))
    return *_kept(tuple(before.ops), tuple(body.ops), tuple(after.ops), found), found


def _block(e: PairExpressions, f: Fold) -> dict[str, Value]:
    """The statements of one block in order, and the states' values at its end."""
    updates: dict[str, Value] = {}
    for y in f.body:
        if isinstance(y, IrState):
            value = e.value(y.map, f"{y.target}_next")
            if f.rank in value.dims:  # a block of one point
                value = e.blocks.reduce("sum", e.blocks.as_float(value), f.rank, f"{y.target}_next")
            e.env[y.target] = updates[y.target] = shaped(e, value, y)
            continue
        e.define(y.target, y.ranks, statement(e, y))
        if y.target in e.cascade.outs:
            _put(e, y.target)
    return updates


def _put(e: PairExpressions, target: str) -> None:
    value = e.env[target]
    e.store(target, e.blocks.broadcast(value, set(e.ranks[target]) - set(value.dims), target))


def _kept(before: Region, body: Region, after: Region, states: tuple[State, ...]) -> tuple[Region, Region, Region]:
    """What the stores and the states need."""
    wanted = {v.name for s in states for v in (s.init, s.update)}
    after = needed(after, set())
    wanted |= {v.name for op in after for v in reads(op)}
    body = _late(needed(body, wanted), [s.update.name for s in states])
    return needed(before, wanted | {v.name for op in body for v in reads(op)}), body, after


def _late(ops: tuple[Op, ...], wanted: list[str]) -> tuple[Op, ...]:
    """Every operation shortly before what needs it, so that few blocks are alive at a time; stores in their order, ``wanted`` last."""
    made = {op.out.name: op for op in ops if not isinstance(op, kp.Store)}
    out: list[Op] = []
    done: set[str] = set()

    def need(name: str) -> None:
        op = made.get(name)
        if op is None or name in done:
            return
        done.add(name)
        for v in reads(op):
            need(v.name)
        out.append(op)

    for op in ops:
        if isinstance(op, kp.Store):
            for v in reads(op):
                need(v.name)
            out.append(op)
    for name in wanted:
        need(name)
    return tuple(out)
