"""`Reads`: what a point reads of a state, in terms of the state at the start of its block and of what earlier points of it wrote.

    sum[d] q * S   ->   G * (sum[d] q * S)  +  sum[i_2] (sum[d] q[i, d] * k[i_2, d]) * exp(G[i] - G[i_2]) * v[i_2, e] where i_2 <= i

Where the update reads the carried state itself, what such a read adds to earlier points is not known yet: the coefficients of that are
handed back, and make a triangular system.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from einfuse.ir import expr as ex
from einfuse.ir.chunks.block import Block
from einfuse.ir.chunks.decay import Decay
from einfuse.ir.expr import call
from einfuse.ir.nodes import Expr, State
from einfuse.ir.recurrence import NotLinearError, Update

Product = tuple[Expr, ...]
"""Factors."""


@dataclass(frozen=True, slots=True)
class Read:
    """A sum of weights times a state at every point, called ``name``; ``new``: of its value after the point's own update."""

    name: str
    state: State
    weights: Product
    over: tuple[str, ...]
    new: bool


@dataclass(frozen=True, slots=True)
class Reads:
    """Reads of the states of a scan inside ``block``. A state without a decay keeps nothing from point to point."""

    block: Block
    states: Mapping[str, State]
    updates: Mapping[str, Update]
    decays: Mapping[str, Decay]

    def split(self, read: Read) -> tuple[Expr, list[Expr]]:
        """What is known of a read at every point, and the coefficients of the unknown at earlier points."""
        block, found = self.block, self.updates[read.state.target]
        total = self._far(read)
        unknown: list[Expr] = []
        cyclic = read.name == found.read and not read.new
        for parts in found.writes if cyclic else self.writes(read.state):
            mine = [p for p in parts if found.read is not None and found.read in ex.reads(p)] if cyclic else []
            pair, after = self._pair(read, tuple(p for p in parts if p not in mine))
            e = ex.product(pair, *map(block.there, after))
            if mine:
                if any(ex.indices(p) & set(read.state.ranks) for p in after):
                    raise NotLinearError(f"{read.name} meets itself with a weight for every feature")
                unknown.append(e)
                continue
            kept = set().union(*(ex.indices(p) for p in (*after, pair))) - {block.other.name}
            share = block.named(f"{read.name}_near", kept | {block.i}, "sum", (block.other.name,), e)
            total = call("+", total, share)
        return total, unknown

    def writes(self, y: State) -> list[Product]:
        """The writes of a state, those with the same factors of its first rank joined into one."""
        groups: dict[Product, list[Product]] = {}
        for parts in self.updates[y.target].writes:
            first = tuple(p for p in parts if y.ranks and y.ranks[0] in ex.indices(p))
            groups.setdefault(first, []).append(tuple(p for p in parts if p not in first))
        out = []
        for first, rests in groups.items():
            if len(rests) == 1:
                out.append((*first, *rests[0]))
                continue
            total = ex.product(*rests[0])
            for rest in rests[1:]:
                total = call("+", total, ex.product(*rest))
            out.append((*first, self.block.map(f"{y.target}_value", ex.indices(total), total)))
        return out

    def _far(self, read: Read) -> Expr:
        """The share of the state at the start of the block."""
        y, over, block = read.state, read.over, self.block
        decay = self.decays.get(y.target)
        if decay is None and read.new:
            return ex.ZERO
        factor = ex.ONE if decay is None else decay.over("G" if read.new else "G_old")
        inside = decay is not None and bool(decay.ranks & set(y.ranks))
        held = ex.at(y.target, y.ranks)
        if not over:
            return ex.product(*read.weights, factor, held)
        parts = (*read.weights, factor) if inside else read.weights
        if inside or len(parts) > 1:  # the weights of the state are one matrix
            parts = (block.map(f"{read.name}_weight", set().union(*map(ex.indices, parts)), ex.product(*parts)),)
        kept = ({block.i} | set(y.ranks) | set().union(*map(ex.indices, parts))) - set(over)
        share = block.named(f"{read.name}_far", kept, "sum", over, ex.product(*parts, held))
        return share if inside else call("*", factor, share)

    def _pair(self, read: Read, write: Product) -> tuple[Expr, Product]:
        """The matrix of what a point takes from an earlier one, and the factors of the write that stay outside it."""
        block, over = self.block, read.over
        decay = self.decays.get(read.state.target)
        if decay is None:
            raise NotLinearError(f"{read.state.target} keeps nothing from point to point")
        mask = block.other_is("<=" if read.new else "<")  # of the matrix itself: what reads it needs none
        inside = bool(decay.ranks & set(over))
        move = decay.between(block, read.new)
        summed = tuple(p for p in write if ex.indices(p) & set(over))
        after = tuple(p for p in write if p not in summed)
        matrix: Expr = ex.product(*read.weights)
        if over:
            parts = (*read.weights, *map(block.there, summed), *((move,) if inside else ()))
            if not all(any(r in ex.indices(p) for p in parts) for r in over):
                raise NotLinearError(f"{read.name} sums a state over a rank that it does not write")
            kept = set().union(*map(ex.indices, parts)) - set(over) | {block.i, block.other.name}
            matrix = block.named(f"{read.name}_pairs", kept, "sum", over, ex.product(*parts), mask if inside else None)
            if inside:
                return matrix, after
        whole = call("*", matrix, move)
        return block.map(f"{read.name}_weights", ex.indices(whole) | {block.other.name}, whole, mask), after
