"""`Reads`: what a point reads of a state, in terms of the state at the start of its block and of what earlier points of it wrote.

    sum[d] q * S   ->   G * (sum[d] q * S)  +  sum[i_2] (sum[d] q[i, d] * k[i_2, d]) * exp(G[i] - G[i_2]) * v[i_2, e] where i_2 <= i

A decay with features is cut in halves (`ir.chunks.decay`), inside of the sum where the read sums over them.

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

    @property
    def halved(self) -> bool:
        """Whether a decay has features, so that it is cut in halves."""
        return any(d.ranks for d in self.decays.values())

    def split(self, read: Read) -> tuple[Expr, list[Expr]]:
        """What is known of a read at every point, and the coefficients of the unknown at earlier points."""
        block, found = self.block, self.updates[read.state.target]
        total = self._far(read)
        unknown: list[Expr] = []
        cyclic = read.name == found.read and not read.new
        for parts in found.writes if cyclic else self.writes(read.state):
            mine = [p for p in parts if found.read is not None and found.read in ex.reads(p)] if cyclic else []
            others = tuple(p for p in parts if p not in mine)
            summed, after = self._parts(read, others)
            if mine and (self._outside(read) or any(ex.indices(p) & set(read.state.ranks) for p in after)):
                raise NotLinearError(f"{read.name} meets itself with a weight for every feature")
            if self._outside(read):
                total = call("+", total, self._near_by_halves(read, summed, after))
                continue
            pair = self._pair(read, summed)
            e = ex.product(pair, *map(block.there, after))
            if mine:
                unknown.append(e)
            else:
                total = call("+", total, self._near(read, (pair, *after), e))
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
        inside = decay is not None and bool(decay.ranks & set(over))
        held = ex.at(y.target, y.ranks)
        if not over:
            return ex.product(*read.weights, factor, held)
        parts = (*read.weights, factor) if inside else read.weights
        if inside or len(parts) > 1:  # the weights of the state are one matrix
            parts = (block.map(f"{read.name}_weight", set().union(*map(ex.indices, parts)), ex.product(*parts)),)
        kept = ({block.i} | set(y.ranks) | set().union(*map(ex.indices, parts))) - set(over)
        share = block.named(f"{read.name}_far", kept, "sum", over, ex.product(*parts, held))
        return share if inside else call("*", factor, share)

    def _outside(self, read: Read) -> bool:
        """Has the decay features that the read does not sum over?"""
        decay = self.decays.get(read.state.target)
        return decay is not None and bool(decay.ranks) and not decay.ranks & set(read.over)

    def _parts(self, read: Read, write: Product) -> tuple[Product, Product]:
        """The factors of a write that a read sums over, and those that stay outside of its sum."""
        over = set(read.over)
        summed = tuple(p for p in write if ex.indices(p) & over)
        if not over <= set().union(*map(ex.indices, (*read.weights, *summed))):
            raise NotLinearError(f"{read.name} sums a state over a rank that it does not write")
        return summed, tuple(p for p in write if p not in summed)

    def _near(self, read: Read, parts: Product, e: Expr, mask: Expr | None = None) -> Expr:
        """The share of the other points of the block, ``e`` being that of one of them, made of ``parts``."""
        block = self.block
        kept = set().union(*map(ex.indices, parts)) - {block.other.name} | {block.i}
        return block.named(f"{read.name}_near", kept, "sum", (block.other.name,), e, mask)

    def _near_by_halves(self, read: Read, summed: Product, after: Product) -> Expr:
        """The same with a decay of features that stay outside of the sum: half by half, and one's own point."""
        block, decay = self.block, self.decays[read.state.target]
        matrix = self._matrix(read, (*read.weights, *map(block.there, summed)))
        total: Expr = ex.ZERO
        weighed = tuple(p for p in after if ex.indices(p) - block.points <= decay.ranks)
        others = tuple(p for p in after if p not in weighed)
        for half in decay.halves(block, read.new):
            e = ex.product(*weighed, half.left)
            wrote = (*others, block.map(f"{read.state.target}_from{half.span}", ex.indices(e), e))
            share = self._near(read, (matrix, *wrote), ex.product(matrix, *map(block.there, wrote)), half.apart)
            total = call("+", total, call("*", half.left, share))
        if read.new:
            own = self._matrix(read, (*read.weights, *summed), own=True)
            total = call("+", total, ex.product(own, *after))
        return total

    def _matrix(self, read: Read, parts: Product, mask: Expr | None = None, own: bool = False) -> Expr:
        """The sum of a read over these factors at each pair of points, or at each point alone where ``own``."""
        block = self.block
        if not read.over:
            return ex.product(*parts)
        kept = set().union(*map(ex.indices, parts)) - set(read.over) | {block.i}
        kept |= set() if own else {block.other.name}
        return block.named(f"{read.name}_{'own' if own else 'pairs'}", kept, "sum", read.over, ex.product(*parts), mask)

    def _pair(self, read: Read, summed: Product) -> Expr:
        """The matrix of what a point takes from an earlier one of what this one wrote, but for the factors outside of the sum."""
        block = self.block
        decay = self.decays.get(read.state.target)
        if decay is None:
            raise NotLinearError(f"{read.state.target} keeps nothing from point to point")
        mask: Expr | None = None
        if decay.ranks:
            matrix = self._matrix_by_halves(read, summed, decay)
        else:
            mask = block.other_is("<=" if read.new else "<")  # of the matrix itself: what reads it needs none
            matrix = self._matrix(read, (*read.weights, *map(block.there, summed)))
        whole = call("*", matrix, decay.between(block, read.new))
        return block.map(f"{read.name}_weights", ex.indices(whole) | {block.other.name}, whole, mask)

    def _matrix_by_halves(self, read: Read, summed: Product, decay: Decay) -> Expr:
        """The matrix with a decay inside of the sum: for each size of halves the product of both, and one's own point."""
        block = self.block
        total: Expr = ex.ZERO
        for half in decay.halves(block, read.new):
            sides = []
            for name, parts in ((f"{read.name}_to", read.weights), (f"{read.state.target}_from", summed)):
                e = ex.product(*parts, half.left)
                sides.append(block.map(f"{name}{half.span}", ex.indices(e), e))
            total = call("+", total, self._matrix(read, (sides[0], block.there(sides[1])), half.apart))
        if read.new:
            own = self._matrix(read, (*read.weights, *summed), own=True)
            here = call("==", ex.index(block.other.name), ex.index(block.i))
            total = call("+", total, call("select", here, own, ex.const(0.0)))
        return total
