"""`Decay`: a decay added up inside a block, so that from any point to any other it is one exponential.

Each sum is kept in two parts, one of multiples of 1 / 256 (exact in any float type) and a small rest: the difference of two large sums
would have lost the digits that near points need. For the same reason no logarithm is below -1000, of which no float type has the exponential:
a gate of exp(-1e9), or exp(log(0)), forgets all and leaves what comes after it as it is. A reset is a decay of 0 by a condition: resets are
counted, and between two points of different counts nothing is left.
"""

from __future__ import annotations

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
class Decay:
    """What a decay adds up to: coarse ``sums`` and ``rests`` of its logarithm, which has these feature ``ranks``, and the numbers of its
    ``resets``; each empty where there is nothing to add."""

    ranks: frozenset[str]
    sums: Sums
    rests: Sums
    resets: Sums

    def over(self, extent: Extent) -> Expr:
        """The decay over these points; 0 where there was a reset."""
        value = call("exp", call("+", self.sums[extent], self.rests[extent])) if self.sums else ex.const(1.0)
        return self._unless_reset(extent, ex.const(0.0), value)

    def between(self, block: Block, new: bool) -> Expr:
        """The decay from the other point of a pair to one's own, which is not part of it unless ``new``."""
        extent: Extent = "G" if new else "G_old"
        value: Expr = ex.const(1.0)
        if self.sums:
            parts = [call("-", t[extent], block.there(t["G"])) for t in (self.sums, self.rests)]
            value = call("exp", call("+", *parts))
        return self._unless_reset(extent, block.there(self.resets["G"]) if self.resets else ex.ZERO, value)

    def _unless_reset(self, extent: Extent, before: Expr, value: Expr) -> Expr:
        if not self.resets:
            return value
        return call("select", call("==", self.resets[extent], before), value, ex.const(0.0))


def added_up(block: Block, state: str, found: LogDecay) -> Decay:
    """The statements that add up the decay of a state. Raises NotLinearError for resets that are not the same for all features."""
    ranks = ex.indices(found.log) - block.points
    sums: Sums = {}
    rests: Sums = {}
    resets: Sums = {}
    if found.log is not None:
        log = block.map(f"{state}_log", ranks, call("max", found.log, ex.const(-LEAST)))
        whole = call("floor", call("*", log, ex.const(float(GRAIN))))
        coarse = block.map(f"{state}_coarse", ranks, call("/", call("float", whole), ex.const(float(GRAIN))))
        sums = _sums(block, state, "", coarse)
        rests = _sums(block, state, "_rest", call("-", log, coarse))
    if found.reset is not None:
        if ex.indices(found.reset) - block.points:
            raise NotLinearError("a reset differs from feature to feature")
        resets = _sums(block, state, "_resets", call("float", found.reset))
    return Decay(frozenset(ranks), sums, rests, resets)


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
