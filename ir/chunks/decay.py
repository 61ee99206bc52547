"""`Decay`: a decay added up inside a block, so that from any point to any other it is one exponential.

A number per point: the exponential of the difference of two sums from the start of the block. Each sum is kept in two parts, one of multiples
of 1 / 256 (exact in any float type) and a small rest: the difference of two large sums would have lost the digits that near points need.

A number per feature: an exponential for every pair and feature would be more work than all the rest, and no matrix product. But a decay from
one point to another is the decay to any point between them times the decay from there on. Cut the block in halves, these in halves again, and
so on: two points are in different halves of exactly one part (`Half`), so that with ``w`` what is left between a point and its middle

    sum[d] q[i, d] * k[i_2, d] * exp(G[i, d] - G[i_2, d])  ->  sum[d] (q * w)[i, d] * (k * w)[i_2, d]   where i and i_2 are in the two halves

which is a matrix product for each size of the parts, and no exponent is positive where no logarithm is. Nothing is subtracted.

No logarithm is below -1000, of which no float type has the exponential: a gate of exp(-1e9), or exp(log(0)), forgets all and leaves what
comes after it as it is. A reset is a decay of 0 by a condition: resets are counted, and between two points of different counts nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from einfuse.ir import expr as ex
from einfuse.ir.chunks.block import Block
from einfuse.ir.expr import call
from einfuse.ir.nodes import Expr
from einfuse.ir.recurrence import LogDecay, NotLinearError

GRAIN = 256
LEAST = 1e3
"""A logarithm is no less than -LEAST, its coarse part a multiple of 1 / GRAIN: sums over a block of 64 points are exact in 24 bits."""
Extent = Literal["G", "G_old", "H", "T"]
"""Which points a sum goes over: those up to one's own, before it, after it, and all of the block."""
Sums = dict[Extent, Expr]


@dataclass(frozen=True, slots=True)
class Half:
    """Parts of twice ``span`` points: ``left`` is the decay between a point and the middle of its part, ``apart`` the condition that the
    other point of a pair is in the first half of a part and one's own in the second."""

    span: int
    left: Expr
    apart: Expr


@dataclass(frozen=True, slots=True)
class Decay:
    """What a decay of ``state`` adds up to: ``sums`` of its logarithm ``log``, which has these feature ``ranks``, the ``rests`` that they
    leave, and the numbers of its ``resets``; each empty where there is nothing to add."""

    state: str
    log: Expr | None
    ranks: frozenset[str]
    sums: Sums
    rests: Sums
    resets: Sums

    def over(self, extent: Extent) -> Expr:
        """The decay over these points; 0 where there was a reset."""
        value = call("exp", self._whole(self.sums[extent], self.rests.get(extent))) if self.sums else ex.const(1.0)
        return self._unless_reset(extent, ex.const(0.0), value)

    def between(self, block: Block, new: bool) -> Expr:
        """The decay from the other point of a pair to one's own, which is not part of it unless ``new``; 1 where it is cut in `halves`."""
        extent: Extent = "G" if new else "G_old"
        value: Expr = ex.const(1.0)
        if self.sums and not self.ranks:
            parts = [call("-", t[extent], block.there(t["G"])) for t in (self.sums, self.rests)]
            value = call("exp", self._whole(*parts))
        return self._unless_reset(extent, block.there(self.resets["G"]) if self.resets else ex.ZERO, value)

    def halves(self, block: Block, new: bool) -> Iterator[Half]:
        """The decay of each pair of different points as a product of two, the largest parts first; one's own point is not part of it
        unless ``new``."""
        i, other = (_place(block, r) for r in (block.i, block.other.name))
        for span in _spans(block.step):
            mine, theirs = (call("//", x, ex.const(span)) if span > 1 else x for x in (i, other))
            second = call("==", call("%", mine, ex.const(2)), ex.const(1))
            apart = call("and", call("==", theirs, call("-", mine, ex.ONE)), second)
            yield Half(span, call("exp", self._to_the_middle(block, span, call("==", mine, theirs), second, new)), apart)

    def _to_the_middle(self, block: Block, span: int, same: Expr, second: Expr, new: bool) -> Expr:
        """The logarithms between a point and the middle: of a second half all up to it, of a first half all after it."""
        assert self.log is not None, "what has features has a logarithm"
        if span == 1:
            return call("select", second, self.log, ex.const(0.0)) if new else ex.const(0.0)
        towards = [
            call("and", second, block.other_is("<=" if new else "<")),
            call("and", call("not", second), block.other_is(">")),
        ]
        mask = call("and", same, call("or", *towards))
        ranks = {block.i, *self.ranks}
        return block.named(f"{self.state}_half{span}", ranks, "sum", (block.other.name,), block.there(self.log), mask)

    def _unless_reset(self, extent: Extent, before: Expr, value: Expr) -> Expr:
        if not self.resets:
            return value
        return call("select", call("==", self.resets[extent], before), value, ex.const(0.0))

    @staticmethod
    def _whole(total: Expr, rest: Expr | None) -> Expr:
        return total if rest is None else call("+", total, rest)


def _place(block: Block, rank: str) -> Expr:
    """A coordinate that tells the places of a block apart, with the halves of the block where those of its number are."""
    at = ex.index(rank)
    return at if block.step & (block.step - 1) == 0 else call("%", at, ex.const(block.step))


def _spans(step: int) -> tuple[int, ...]:
    """The sizes of halves, the largest first."""
    return tuple(1 << n for n in reversed(range((step - 1).bit_length())))


def added_up(block: Block, state: str, found: LogDecay) -> Decay:
    """The statements that add up the decay of a state. Raises NotLinearError for resets that are not the same for all features."""
    ranks = ex.indices(found.log) - block.points
    log: Expr | None = None
    sums: Sums = {}
    rests: Sums = {}
    resets: Sums = {}
    if found.log is not None:
        log = block.map(f"{state}_log", ranks, call("max", found.log, ex.const(-LEAST)))
        if ranks:
            sums = _sums(block, state, "", log)
        else:
            whole = call("floor", call("*", log, ex.const(float(GRAIN))))
            coarse = block.map(f"{state}_coarse", ranks, call("/", call("float", whole), ex.const(float(GRAIN))))
            sums = _sums(block, state, "", coarse)
            rests = _sums(block, state, "_rest", call("-", log, coarse))
    if found.reset is not None:
        if ex.indices(found.reset) - block.points:
            raise NotLinearError("a reset differs from feature to feature")
        resets = _sums(block, state, "_resets", call("float", found.reset))
    return Decay(state, log, frozenset(ranks), sums, rests, resets)


def _sums(block: Block, state: str, kind: str, e: Expr) -> Sums:
    """``e`` added up over each extent."""
    mine = ex.indices(e) - block.points
    value = block.map(f"{state}_log{kind}", mine, e) if e.op != "load" else e
    conditions: dict[Extent, str] = {"G": "<=", "G_old": "<", "H": ">"}
    out: Sums = {}
    for extent, op in conditions.items():
        there, mask = block.there(value), block.other_is(op)
        out[extent] = block.named(f"{state}_{extent}{kind}", mine | {block.i}, "sum", (block.other.name,), there, mask)
    out["T"] = block.named(f"{state}_T{kind}", mine, "sum", (block.i,), value)
    return out
