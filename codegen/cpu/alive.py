"""Which nodes of a masked body may skip the points that are not alive: strips of rows, from the first to the last live vector of each.

before   live = j <= i ; s = q . k ; p = select(live, exp(s - m), 0) ; l += sum[j](p) ; o += p v         all columns
after    strips of `live` ; s, where alive ; p and l, where alive ; o += p v, terms that are alive       half of a triangle

A value that is read only below a selection by the mask need not be computed elsewhere; a sum needs no terms that are selected to be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from einfuse.codegen.cpu.forms import operands
from einfuse.codegen.cpu.schedule import Limit, Nest, Node, Product
from einfuse.codegen.plan import Dot, Map, Op, Reduce, Region, Store, Value, reads, renamed
from einfuse.codegen.plan import live as live_of
from einfuse.ir import Scalar

Constant = Callable[[Value], Scalar | None]


@dataclass(slots=True)
class Mask:
    """A truth value over two ranks, and what the operations of a body make of it. ``constant`` knows the numbers among values."""

    live: Value
    ops: Sequence[Op]
    constant: Constant
    updates: Sequence[Value]
    implying: set[str] = field(default_factory=set)  # truth values that are false wherever `live` is
    outside: dict[str, Scalar] = field(default_factory=dict)  # values that are a number wherever `live` is false, and it
    everywhere: set[str] = field(default_factory=set)  # values that something needs where `live` is false

    def __post_init__(self) -> None:
        self.implying = {self.live.name}
        for op in self.ops:
            if isinstance(op, Map) and op.fn == "and" and any(a.name in self.implying for a in op.args):
                self.implying.add(op.out.name)
            if isinstance(op, Map) and op.fn == "select" and op.args[0].name in self.implying:
                number = self.constant(op.args[2])
                if number is not None:
                    self.outside[op.out.name] = number
        self.everywhere = {u.name for u in self.updates}
        for op in reversed(self.ops):
            self.everywhere |= {v.name for v in reads(op) if v.dims == self.live.dims and not self.spared(op, v)}

    def spared(self, op: Op, v: Value) -> bool:
        """Whether an operation has no use for the value where the mask is false."""
        match op:
            case Map(fn="select", args=(when, value, other)) if (
                value == v and when.name in self.implying and v not in (when, other)
            ):
                return True
            case Map(out=out):
                return out.dims == v.dims and out.name not in self.everywhere
            case Reduce():
                return self.skips(op)
            case Dot():
                limit = self.limit(op)
                if v == op.acc:
                    return limit == "columns"
                return limit == "terms" and v == operands(op)[0]
        return False

    def skips(self, op: Reduce) -> bool:
        """Whether a reduction meets nothing but its identity where the mask is false."""
        return self.outside.get(op.arg.name) == op.reducer.identity

    def limit(self, op: Dot) -> Limit:
        """Which part of a product may be left out."""
        a, _, x, _ = operands(op)
        if op.out.dims == self.live.dims:
            return "" if op.out.name in self.everywhere else "columns"
        if a.dims == self.live.dims and self.outside.get(a.name) == 0:
            return "terms" if a.dims[0] == x else "turned terms"
        return ""

    def loop(self, nest: Nest) -> bool:
        """Whether a nest may run over the live strips alone; values that others need elsewhere are 0 there."""
        if nest.dims != self.live.dims or nest.seen is not None or any(isinstance(op, Store) for op in nest.ops):
            return False
        kept = {v.name for v in nest.kept}
        made = [op for op in nest.ops if not isinstance(op, Store) and op.out.name in kept]
        return all(
            self.skips(op)
            if isinstance(op, Reduce)
            else op.out.name not in self.everywhere or self.outside.get(op.out.name) == 0
            for op in made
        )


def mask(ops: Sequence[Op], pair: tuple[str, ...], updates: Sequence[Value], constant: Constant) -> Mask | None:
    """The condition over a pair of ranks that lets products of a body skip most, or None where none does."""
    conditions = dict.fromkeys(
        op.args[0] for op in ops if isinstance(op, Map) and op.fn == "select" and op.args[0].dims == pair
    )
    best, most = None, 0
    for live in conditions:
        if live.dtype != "bool" or not any(not isinstance(op, Store) and op.out == live for op in ops):
            continue
        found = Mask(live, ops, constant, updates)
        skipped = sum(bool(found.limit(op)) for op in ops if isinstance(op, Dot))
        if skipped > most:
            best, most = found, skipped
    return best


def everywhere(region: Region, updates: tuple[Value, ...], live: Value) -> tuple[Region, tuple[Value, ...]]:
    """A body and its updates where a condition holds at every point of the block."""
    made = {op.out.name: op for op in region if not isinstance(op, Store)}
    holds, left = {live.name}, [live.name]
    while left:
        made_so = made.get(left.pop())
        if isinstance(made_so, Map) and made_so.fn == "and":
            more = {a.name for a in made_so.args} - holds
            holds |= more
            left += more
    holds |= {
        op.out.name for op in made.values() if isinstance(op, Reduce) and op.reducer.name == "any" and op.arg.name in holds
    }
    same: dict[str, Value] = {}
    out: list[Op] = []
    for op in region:
        here = renamed(op, {v.name: same.get(v.name, v) for v in reads(op)})
        if isinstance(here, Map) and here.fn == "select" and here.args[0].name in holds and here.args[1].dims == here.out.dims:
            same[here.out.name] = here.args[1]
            continue
        if isinstance(here, Dot) and here.where is not None and here.where.name in holds:
            here = replace(here, where=None)
        out.append(here)
    wanted = tuple(same.get(u.name, u) for u in updates)
    return live_of(out, {u.name for u in wanted}), wanted


def noted(nodes: Sequence[Node], live: Value) -> list[Node]:
    """The nodes, with the nest that computes the mask noting where it is alive."""
    out: list[Node] = []
    for node in nodes:
        makes = isinstance(node, Nest) and any(not isinstance(op, Store) and op.out == live for op in node.ops)
        out.append(replace(node, seen=live) if isinstance(node, Nest) and makes else node)
    return out


def limited(nodes: Sequence[Node], found: Mask) -> list[Node]:
    """The nodes that follow where the mask is known, each limited as far as it may be."""
    out: list[Node] = []
    known = False
    for node in nodes:
        if known and isinstance(node, Product):
            node = replace(node, limit=found.limit(node.op))
        elif known and isinstance(node, Nest) and found.loop(node):
            node = replace(node, limited=True, cleared=tuple(v for v in node.kept if v.name in found.everywhere))
        known = known or (isinstance(node, Nest) and node.seen is not None)
        out.append(node)
    return out
