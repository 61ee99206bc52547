"""`widen`: matrix products of fp16 whose operands may pass what fp16 holds (65504) take these as tf32: the same significant bits, and the
exponents of fp32.

    before   w = s * s ; o = dot[j](w, v)                s = 300 gives 90000, which is infinite in fp16
    after    w = s * s ; o = dot[j](w, v) wide

Three levels: a weight that has been normalised or subtracted a maximum from is at most ``UNIT``; inputs, scores and what is added up of
these are ``USUAL``, and taken to fit as the inputs do; a product of two of these for every pair of positions, or the exponential of one,
may be ``LARGE``. Numbers of rows alone normalise: a product with one is as large as its other factor.
"""

from __future__ import annotations

from dataclasses import replace
from enum import IntEnum

from einfuse.codegen.plan import Const, Dot, Fold, KernelPlan, Map, Op, Reduce, Region, Store, Value
from einfuse.codegen.triton.algebra import EXP_DIFFERENCE

MOST = 65504.0
BOUNDED = frozenset({"sigmoid", "tanh", "sin", "cos", "erf", "sign"})
SHRINKING = frozenset({"sqrt", "log", "log1p", "log2"})
"""Of what fp32 holds beyond fp16, these give what fp16 holds."""


class Magnitude(IntEnum):
    """How large a value may be."""

    UNIT = 0
    USUAL = 1
    LARGE = 2


def widen(plan: KernelPlan) -> KernelPlan:
    """The plan with products wide where an operand may be `Magnitude.LARGE`; itself where nothing is computed for fp16."""
    if plan.narrow != "f16" or plan.compute != "f32":
        return plan
    found = _Magnitudes(frozenset(f.rank for f in plan.features))

    def region(ops: Region) -> Region:
        return tuple(map(found.widened, ops))

    def fold(loop: Fold) -> Fold:
        while True:  # a state is as large as what it becomes
            widened = loop.mapped(region)
            larger = {
                s.value.name: Magnitude.LARGE
                for p in loop.phases
                for s, u in zip(loop.states, p.updates, strict=True)
                if found.of(u) == Magnitude.LARGE and found.of(s.value) != Magnitude.LARGE
            }
            found.known |= larger
            if not larger:
                return widened

    return plan.mapped(region, fold)


class _Magnitudes:
    """The magnitudes of values by name, as operations are met in order."""

    def __init__(self, features: frozenset[str]) -> None:
        self.features = features
        self.known: dict[str, Magnitude] = {}

    def of(self, v: Value) -> Magnitude:
        return self.known.get(v.name, Magnitude.USUAL)

    def widened(self, op: Op) -> Op:
        """The operation, a product wide where it must be; its result is noted."""
        if isinstance(op, Store):
            return op
        self.known[op.out.name] = self._magnitude(op)
        if isinstance(op, Dot) and op.narrow and Magnitude.LARGE in (self.of(op.a), self.of(op.b)):
            return replace(op, narrow=False)
        return op

    def _magnitude(self, op: Op) -> Magnitude:
        match op:
            case Const(value=value):
                x = abs(value)
                return Magnitude.UNIT if x <= 1 else Magnitude.USUAL if x <= MOST else Magnitude.LARGE
            case Dot(a=a, b=b):
                return max(Magnitude.USUAL, self.of(a), self.of(b))
            case Reduce(arg=arg):
                return max(Magnitude.USUAL, self.of(arg))
            case Map():
                return self._mapped(op)
            case _:  # a tensor's values, coordinates, numbers of the call
                return Magnitude.USUAL

    def _mapped(self, op: Map) -> Magnitude:
        sizes = [self.of(x) for x in op.args if x.dtype == "float"] or [Magnitude.USUAL]
        if op.fn in BOUNDED or op.out.dtype == "bool":
            return Magnitude.UNIT
        if op.fn in SHRINKING:
            return Magnitude.USUAL
        if op.fn == EXP_DIFFERENCE:
            return Magnitude.UNIT if len(op.args[1].dims) < len(op.out.dims) else Magnitude.LARGE
        if op.fn in ("exp", "exp2", "rsqrt", "^"):
            return Magnitude.LARGE if len(op.out.dims) > 1 or Magnitude.LARGE in sizes else Magnitude.USUAL
        if op.fn in ("*", "/"):
            return self._scaled(op)
        return max(sizes)

    def _scaled(self, op: Map) -> Magnitude:
        """Of a product or quotient: as large as the factor that has all ranks; of two for every pair of positions, one must be a unit."""
        whole = [x for x in op.args if len(x.dims) == len(op.out.dims)]
        sizes = [self.of(x) for x in whole] or [Magnitude.USUAL]
        if len(whole) < 2 or len({*op.out.dims} - self.features) < 2:
            return max(sizes)
        return max(sizes) if op.fn == "*" and Magnitude.UNIT in sizes else Magnitude.LARGE
