"""Which buffer holds which value of a loop body: states are updated in place where nothing reads the old value later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from einfuse.codegen.cpu.schedule import Nest, Node, Product, node_reads
from einfuse.codegen.cpu.schedule import kept as kept_by
from einfuse.codegen.plan import Dot, Reduce, State, Store, Value


@dataclass(slots=True)
class Assignment:
    """``alias``: values that live in a state's buffer, by name; ``slot``: the pool buffer of every other kept value."""

    alias: dict[str, str] = field(default_factory=dict)
    slot: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Lives:
    defined: dict[str, int]
    last: dict[str, int]
    values: dict[str, Value]
    in_place: frozenset[str]  # values whose every element is written after the reads of the same element
    products: dict[str, Dot]


def assign(nodes: Sequence[Node], states: Sequence[State], updates: Sequence[Value]) -> Assignment:
    """The buffers of one body."""
    lives = _lives(nodes, updates)
    out = Assignment()
    for state, update in zip(states, updates, strict=True):
        if state.value.dims and update.dims == state.value.dims and update.name not in out.alias:
            chain = _chain(lives, state.value, update)
            out.alias |= dict.fromkeys(chain, state.value.name)
    _slots(lives, out)
    return out


def _lives(nodes: Sequence[Node], updates: Sequence[Value]) -> _Lives:
    defined: dict[str, int] = {}
    values: dict[str, Value] = {}
    last: dict[str, int] = {}
    in_place: set[str] = set()
    products: dict[str, Dot] = {}
    for n, node in enumerate(nodes):
        for name in node_reads(node):
            last[name] = n
        if isinstance(node, Nest):
            kept = kept_by(node)
            scattered = {op.out.name for op in node.ops if isinstance(op, Reduce) and (op.at or op.rank != node.dims[-1])}
            in_place |= {v.name for v in kept if v.name not in scattered}
        elif isinstance(node, Product):
            kept = (node.op.out,)
            products[node.op.out.name] = node.op
        else:
            kept = ()
        for v in kept:
            if v.dims:
                defined[v.name], values[v.name] = n, v
    for u in updates:
        last[u.name] = len(nodes)
    return _Lives(defined, last, values, frozenset(in_place), products)


def _chain(lives: _Lives, state: Value, update: Value) -> tuple[str, ...]:
    """The values that can take over the state's buffer, or none."""
    at = lives.defined.get(update.name)
    if at is None or update.name == state.name:
        return ()
    product = lives.products.get(update.name)
    if product is None:
        free = lives.last.get(state.name, -1) <= at and update.name in lives.in_place
        return (update.name,) if free else ()
    acc = product.acc
    if acc is None or state.name in (product.a.name, product.b.name):
        return (update.name,) if lives.last.get(state.name, -1) < at else ()
    if acc.name == state.name:
        return (update.name,) if lives.last[state.name] <= at else ()
    moved = lives.defined.get(acc.name)
    if moved is None or acc.dims != state.dims or acc.name not in lives.in_place or lives.last[acc.name] > at:
        return (update.name,) if lives.last.get(state.name, -1) < at else ()
    if lives.last.get(state.name, -1) <= moved:
        return acc.name, update.name
    return (update.name,) if lives.last.get(state.name, -1) < at else ()


def _slots(lives: _Lives, out: Assignment) -> None:
    """A linear scan: a buffer is free once its last reader has run, or at that reader if it works in place."""
    pools: dict[tuple[tuple[str, ...], bool], list[tuple[int, int]]] = {}
    for name, at in sorted(lives.defined.items(), key=lambda x: x[1]):
        if name in out.alias:
            continue
        v = lives.values[name]
        pool = pools.setdefault((v.dims, v.dtype == "float"), [])
        fits = [n for n, end in pool if end < at or (end == at and name in lives.in_place)]
        slot = fits[0] if fits else len(pool)
        ends = dict(pool) | {slot: max(lives.last.get(name, at), at)}
        pools[v.dims, v.dtype == "float"] = sorted(ends.items())
        out.slot[name] = slot


def stores(nodes: Sequence[Node]) -> bool:
    """Whether any node writes to memory of the caller."""
    return any(isinstance(op, Store) for n in nodes for op in (n.ops if isinstance(n, Nest) else (n.op,)))
