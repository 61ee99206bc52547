"""Rewrites of a plan that leave less to do for every pair: what one row, one column or the end of a loop can do instead.

extremum    before   s = y * c ; top = max[j] s                   c a positive number: rounding keeps order
            after    t = max[j] y ; top = t * c
select      before   z = select(live, y, -inf) ; p = exp_difference(y, m, c) ; w = select(live, p, 0)
            after    z = select(live, y, -inf) ; w = exp_difference(z, select(m == -inf, 0, m), c)
bounds      before   (j <= i) and (j < N)          or  (j <= i) and (i < N)
            after    j <= min(i, N - 1)            or  j <= select(i < N, i, -1)
window      before   i - j < w                     after   j > i - w
scale       before   t = y * c ; u = t * d ; z = t * w              of 16 bits alone: fp32 shows the order of factors
            after    u = y * (c * d) ; z = (y * w) * c          the product of two numbers stands before the loop
distance    before   float(j - i)                          after    float(j) - float(i): one conversion a row and column
factor      before   loop: x = dot(select(live, y * c, 0), z, x)
            after    loop: x = dot(select(live, y, 0), z, x)      then x * c
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from einfuse.codegen.plan import (
    FUNCTIONS,
    Const,
    Coordinate,
    Dot,
    Fold,
    KernelPlan,
    Map,
    Op,
    Phase,
    Reduce,
    Region,
    Size,
    Store,
    Value,
    operations,
    reads,
    renamed,
)
from einfuse.ir import DType, Scalar
from einfuse.ir.rewrite import fresh

EXP_DIFFERENCE = "exp_difference"
FAR = -(1 << 30)
"""No two coordinates of a rank are this far apart."""


def lighten(plan: KernelPlan) -> KernelPlan:
    """The plan after the rewrites. `prune` removes what nothing reads any more."""
    outer = _Known({}, {})
    taken = {op.out.name for op in operations(plan) if not isinstance(op, Store)}
    taken |= {s.value.name for f in plan.folds for s in f.states}
    steps: list[Region | Fold] = []
    for step in plan.steps:
        match step:
            case Fold():
                scales = _Scales(frozenset(outer.made)) if plan.compute == "f32" and plan.narrow in ("bf16", "f16") else None
                phases = tuple(replace(p, body=_Writer(outer.child(), taken, scales).phase(p)) for p in step.phases)
                if scales and scales.products:
                    steps.append(tuple(scales.products))
                steps.append(replace(step, phases=phases))
            case tuple():
                steps.append(_Writer(outer, taken).region(step))
    return _factored(replace(plan, steps=_joined(steps)), taken)


@dataclass(slots=True)
class _Scales:
    """Products of numbers that are known ``before`` a loop; ``uses`` counts the reads of every value in the phase at hand."""

    before: frozenset[str]
    products: list[Op] = field(default_factory=list)
    made: dict[tuple[str, str], Value] = field(default_factory=dict)
    uses: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Known:
    """What the names of a region stand for: operations, and the selections there are by condition and operand."""

    made: dict[str, Op]
    selections: dict[tuple[str, str], Value]

    def child(self) -> _Known:
        return _Known(dict(self.made), dict(self.selections))

    def literal(self, v: Value) -> Scalar | None:
        """The number that a value always is."""
        op = self.made.get(v.name)
        if isinstance(op, Map) and not op.out.dims and op.fn in FUNCTIONS:
            values = [self.literal(a) for a in op.args]
            return FUNCTIONS[op.fn].fold(*values) if all(x is not None for x in values) else None
        return op.value if isinstance(op, Const) else None

    def map(self, v: Value, fn: str) -> Map | None:
        op = self.made.get(v.name)
        return op if isinstance(op, Map) and op.fn == fn else None

    def scaled(self, v: Value) -> tuple[Value, Value] | None:
        """The y and c of a product of a block with a positive number."""
        op = self.map(v, "*")
        for y, c in () if op is None else (op.args, op.args[::-1]):
            factor = self.literal(c)
            if y.dims == v.dims and not c.dims and factor is not None and factor > 0:
                return y, c
        return None


@dataclass(slots=True)
class _Writer:
    """Writes one region anew."""

    known: _Known
    taken: set[str]
    scales: _Scales | None = None
    ops: list[Op] = field(default_factory=list)

    def phase(self, phase: Phase) -> Region:
        if self.scales:
            names = [v.name for op in phase.body for v in reads(op)]
            self.scales.uses = Counter([*names, *(u.name for u in phase.updates)])
        return self.region(phase.body)

    def region(self, region: Region) -> Region:
        for op in region:
            self.add(self.rewritten(op))
        return tuple(self.ops)

    def add(self, op: Op) -> None:
        self.ops.append(op)
        if not isinstance(op, Store):
            self.known.made[op.out.name] = op
        if isinstance(op, Map) and op.fn == "select" and self.known.literal(op.args[2]) == -math.inf:
            self.known.selections[op.args[0].name, op.args[1].name] = op.out

    def new(self, base: str, dims: tuple[str, ...], dtype: DType, fn: str, *args: Value) -> Value:
        out = Value(fresh(base, self.taken), dims, dtype)
        self.add(Map(out, fn, args))
        return out

    def const(self, value: Scalar, dtype: DType) -> Value:
        out = Value(fresh("c", self.taken), (), dtype)
        self.add(Const(out, value))
        return out

    def rewritten(self, op: Op) -> Op:
        if isinstance(op, Reduce) and op.reducer.extreme:
            return self.extremum(op)
        if isinstance(op, Map) and op.fn == "select":
            return self.selected(op)
        if isinstance(op, Map) and op.fn == "and":
            return self.bounded(op)
        if isinstance(op, Map) and op.fn == "<":
            return self.window(op)
        if isinstance(op, Map) and op.fn == "float":
            return self.distance(op)
        if isinstance(op, Map) and op.fn == "*" and self.scales and op.out.dims:
            return self.scaled(op, self.scales)
        return op

    # -- numbers that blocks are multiplied by ---------------------------------------------------------------------------------

    def scaled(self, op: Map, scales: _Scales) -> Op:
        """A product with the number in one of its factors outermost, where nothing else reads that factor."""
        for t, w in (op.args, op.args[::-1]):
            inner = self.known.map(t, "*")
            y, c = (inner.args if inner.args[0].dims else inner.args[::-1]) if inner and len(inner.args) == 2 else (t, t)
            if c.dims or c.name not in scales.before or not y.dims:
                continue
            if w.name in scales.before and not w.dims:
                return replace(op, args=(y, self.product(c, w, scales)))
            if w.dims and scales.uses[t.name] == 1:
                return replace(op, args=(self.new(op.out.name, op.out.dims, "float", "*", y, w), c))
        return op

    def product(self, c: Value, w: Value, scales: _Scales) -> Value:
        key = (min(c.name, w.name), max(c.name, w.name))
        if key not in scales.made:
            scales.made[key] = Value(fresh("scale", self.taken), (), "float")
            made = Map(scales.made[key], "*", (c, w))
            scales.products.append(made)
            scales.before |= {made.out.name}
        self.known.made.setdefault(scales.made[key].name, Map(scales.made[key], "*", (c, w)))
        return scales.made[key]

    # -- extrema, and exponentials of what they were taken of ------------------------------------------------------------------

    def extremum(self, op: Reduce) -> Op:
        chosen = self.known.map(op.arg, "select")
        arg, identity = (chosen.args[1], self.known.literal(chosen.args[2])) if chosen else (op.arg, None)
        found = self.known.scaled(arg)
        if found is None or (chosen and (identity is None or not math.isinf(identity) or chosen.args[0].dtype != "bool")):
            return op
        y, c = found
        if chosen:
            y = self.new(arg.name, op.arg.dims, "float", "select", chosen.args[0], y, chosen.args[2])
        plain = Value(fresh(op.out.name, self.taken), op.out.dims, "float")
        self.add(replace(op, out=plain, arg=y))
        return Map(op.out, "*", (plain, c))

    def selected(self, op: Map) -> Op:
        live, p, other = op.args
        power = self.known.map(p, EXP_DIFFERENCE)
        if power is None or self.known.literal(other) != 0.0:
            return op
        y, m, *c = power.args
        chosen = self.known.selections.get((live.name, y.name))
        if chosen is None or chosen.dims != op.out.dims:
            return op
        return Map(op.out, EXP_DIFFERENCE, (chosen, self.finite(m), *c))

    def finite(self, m: Value) -> Value:
        """A reference, 0 where it is minus infinity: of a row without a live point, and without a floor."""
        floor = self.known.map(m, "max")
        levels = [self.known.literal(x) for x in floor.args] if floor else []
        if any(isinstance(x, int | float) and x > -math.inf for x in levels):
            return m
        empty = self.new("empty", m.dims, "bool", "==", m, self.const(-math.inf, "float"))
        return self.new(f"{m.name}_finite", m.dims, "float", "select", empty, self.const(0.0, "float"), m)

    # -- masks -----------------------------------------------------------------------------------------------------------------

    def bounded(self, op: Map) -> Op:
        """A conjunction with the conditions of one side folded into that side of a comparison."""
        parts = self._conjuncts(op)
        for n, part in enumerate(parts):
            found = self._comparison(part)
            if found is None:
                continue
            at, bound = found
            for m, other in enumerate(parts):
                tighter = None if m == n else self._tightened(at, bound, other)
                if tighter is None:
                    continue
                dims = tuple(d for d in op.out.dims if d in (*at.dims, *tighter.dims))
                merged = self.new("live", dims, "bool", "<=", at, tighter)
                rest = [p for k, p in enumerate(parts) if k not in (n, m)]
                return self._joined(op, [merged, *rest])
        return op

    def _joined(self, op: Map, parts: list[Value]) -> Op:
        if len(parts) == 1:
            return Map(op.out, "copy", (parts[0],))
        whole = parts[0]
        for p in parts[1:-1]:
            dims = tuple(d for d in op.out.dims if d in (*whole.dims, *p.dims))
            whole = self.new("live", dims, "bool", "and", whole, p)
        return self.bounded(Map(op.out, "and", (whole, parts[-1])))

    def _conjuncts(self, op: Map) -> list[Value]:
        out: list[Value] = []
        for a in op.args:
            inner = self.known.map(a, "and")
            out += [a] if inner is None else self._conjuncts(inner)
        return out

    def _comparison(self, v: Value) -> tuple[Value, Value] | None:
        """The coordinate and the bound of ``at <= bound`` over two ranks."""
        op = self.known.made.get(v.name)
        if not isinstance(op, Map) or op.fn not in ("<=", ">="):
            return None
        at, bound = op.args if op.fn == "<=" else op.args[::-1]
        plain = isinstance(self.known.made.get(at.name), Coordinate) and bound.dtype == "int"
        return (at, bound) if plain and len(at.dims) == 1 and bound.dims and not set(at.dims) & set(bound.dims) else None

    def _tightened(self, at: Value, bound: Value, other: Value) -> Value | None:
        """The bound under which ``at <= bound`` says ``other`` as well; None where it is no condition of one side."""
        op = self.known.made.get(other.name)
        if not isinstance(op, Map) or op.fn != "<" or not isinstance(self.known.made.get(op.args[1].name), Size | Const):
            return None
        if op.args[0] == at and op.args[1].dtype == "int":
            last = self.new("last", (), "int", "-", op.args[1], self.const(1, "int"))
            return self.new("bound", bound.dims, "int", "min", bound, last)
        if set(other.dims) <= set(bound.dims):
            return self.new("bound", bound.dims, "int", "select", other, bound, self.const(-1, "int"))
        return None

    def distance(self, op: Map) -> Op:
        """The difference of two coordinates as one of floats, which are exact up to 2^24: beyond, the nearest float is 1 off at most."""
        gap = self.known.map(op.args[0], "-")
        if gap is None or len(op.out.dims) < 2 or gap.args[0].dims == gap.args[1].dims:
            return op
        if not all(isinstance(self.known.made.get(v.name), Coordinate) and len(v.dims) == 1 for v in gap.args):
            return op
        x, y = (self.new(f"{v.name}_float", v.dims, "float", "float", v) for v in gap.args)
        return Map(op.out, "-", (x, y))

    def window(self, op: Map) -> Op:
        """``x - at < w`` as ``at > x - w``: the difference is taken once a row."""
        gap = self.known.map(op.args[0], "-")
        width = op.args[1]
        if gap is None or width.dims or width.dtype != "int":
            return op
        x, at = gap.args
        plain = all(isinstance(self.known.made.get(v.name), Coordinate) and len(v.dims) == 1 for v in (x, at))
        if not plain or x.dims == at.dims:
            return op
        most = self.new("width", (), "int", "max", width, self.const(FAR, "int"))
        first = self.new("before", x.dims, "int", "-", x, most)
        return Map(op.out, ">", (at, first))


# -- factors of sums -----------------------------------------------------------------------------------------------------------------


def _factored(plan: KernelPlan, taken: set[str]) -> KernelPlan:
    """Constant factors of what a loop adds up, multiplied in behind it."""
    outer = {op.out.name for op in plan.outer if not isinstance(op, Store)}
    steps: list[Region | Fold] = []
    new: dict[str, Value] = {}
    for step in plan.steps:
        match step:
            case tuple():
                steps.append(tuple(_read_anew(op, new) for op in step))
            case Fold():
                loop, factors = _without_factors(step, outer)
                after = tuple(_multiplied(factors, taken, new))
                steps += [loop, after] if after else [loop]
    return replace(plan, steps=_joined(steps))


def _multiplied(factors: Mapping[Value, Value], taken: set[str], new: dict[str, Value]) -> Iterator[Op]:
    """The states times their factors, under ``new`` names."""
    for state, c in factors.items():
        name = f"{state.name}_scaled"
        while name in taken:
            name += "_"
        taken.add(name)
        new[state.name] = Value(name, state.dims, state.dtype)
        yield Map(new[state.name], "*", (state, c))


def _read_anew(op: Op, new: Mapping[str, Value]) -> Op:
    """The operation with the values that stand for states that were multiplied."""
    return renamed(op, {v.name: new.get(v.name, v) for v in reads(op)})


def _without_factors(fold: Fold, outer: set[str]) -> tuple[Fold, dict[Value, Value]]:
    found: dict[Value, Value] = {}
    phases = list(fold.phases)
    for n, state in enumerate(fold.states):
        shares = [_share(p, n, state.value, outer) for p in phases]
        factors = {c for share in shares if share for c in (share[2],)}
        if state.init != 0 or len(factors) != 1 or any(share is None for share in shares):
            continue
        found[state.value] = factors.pop()
        phases = [_stripped(p, *share[:2]) for p, share in zip(phases, shares, strict=True) if share]
    return replace(fold, phases=tuple(phases)), found


def _share(phase: Phase, n: int, state: Value, outer: set[str]) -> tuple[Dot, Map, Value] | None:
    """The product that a state grows by, the map that puts a factor into it, and the factor, a number known before the loop."""
    made = {op.out.name: op for op in phase.body if not isinstance(op, Store)}
    grown = made.get(phase.updates[n].name)
    uses = [v.name for op in phase.body for v in reads(op)]
    if not isinstance(grown, Dot) or grown.acc != state:
        return None
    for side in (grown.a, grown.b):
        op = made.get(side.name)
        while isinstance(op, Map) and op.fn == "select" and uses.count(op.out.name) == 1:
            op = made.get(op.args[1].name)
        if isinstance(op, Map) and op.fn == "*" and uses.count(op.out.name) == 1:
            y, c = op.args
            if not c.dims and c.name in outer and y.dims == op.out.dims:
                return grown, op, c
    return None


def _stripped(phase: Phase, grown: Dot, scaled: Map) -> Phase:
    """The phase with ``scaled`` without its factor."""
    return replace(phase, body=tuple(Map(op.out, "copy", (scaled.args[0],)) if op is scaled else op for op in phase.body))


def _joined(steps: list[Region | Fold]) -> tuple[Region | Fold, ...]:
    out: list[Region | Fold] = []
    for s in steps:
        if isinstance(s, tuple) and out and isinstance(out[-1], tuple):
            out[-1] = out[-1] + s
        else:
            out.append(s)
    return tuple(out)
