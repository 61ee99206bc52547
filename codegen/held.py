"""Ranks that fit into one block are held whole: their loops become straight-line code, in which nothing is carried or re-based.

    before   fold j step 64 { m' = max(m, max[j] s) ; p = exp(s - m') ; l' = l * move(m, m') + sum[j] p ; ... }
    after                     m = max[j] s          ; p = exp(s - m)  ; l = sum[j] p                    ; ...

The body of the one block is taken with its mask, the states are the constants that they start from, and what follows from
constants is computed here. A rank that is held is a feature of the plan: its padding is the affair of every operation that mixes
points, so the comparison of its coordinates with its size goes too. Folds over one rank then share what they compute alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from einfuse.codegen.plan import (
    FUNCTIONS,
    Block,
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
    computed,
    live,
    renamed,
    with_out,
)
from einfuse.ir import DType, Scalar
from einfuse.ir.rewrite import fresh

EXACT = frozenset("+ - * neg max min < <= > >= == != and or not select".split())
"""Functions of constants that are computed here: as on every device."""


def hold(plan: KernelPlan, small: Mapping[str, int] = MappingProxyType({})) -> KernelPlan:
    """The plan with every rank whole that fits into its tile or step; the same plan where it has to loop over any.

    ``small`` gives for sizes that are known at launch only the most they will be; the caller answers for that.
    """
    folds = plan.folds
    bodies = [_body(f) for f in folds]
    if not folds or not all(_block(f.size, f.step, small) for f in folds) or not all(bodies):
        return plan
    held = {f.rank: Block(f.rank, f.size, _block(f.size, f.step, small)) for f in folds}
    tile = plan.tile
    if tile is not None and _block(tile.size, tile.block, small):
        held, tile = {tile.rank: replace(tile, block=_block(tile.size, tile.block, small))} | held, None
    writer = _Writer({r: b.size for r, b in held.items()})
    phases = iter(bodies)
    for step in plan.steps:
        match step:
            case Fold():
                phase = next(phases)
                assert phase is not None, "every fold has a body"
                writer.fold(step, phase)
            case tuple():
                writer.region(step)
    return replace(plan, tile=tile, features=(*held.values(), *plan.features), steps=(live(writer.ops, ()),))


def _block(size: int | str, block: int, small: Mapping[str, int]) -> int:
    """The block that holds a rank of this size whole, 0 where a tile or step of ``block`` does not."""
    most = small.get(size, block + 1) if isinstance(size, str) else size
    return most if most <= block else 0


def _body(fold: Fold) -> Phase | None:
    """What computes one block of a fold, wherever it may end: under the mask, or without one if the rank is just as long as a step."""
    masked = next((p for p in fold.phases if p.label != "full"), None)
    return masked or next((p for p in fold.phases if fold.size == fold.step), None)


@dataclass(slots=True)
class _Writer:
    """One region that grows. ``new`` gives the value that stands for one of the plan's, ``constants`` the numbers among the values."""

    sizes: Mapping[str, int | str]  # of the ranks that are held
    ops: list[Op] = field(default_factory=list)
    new: dict[str, Value] = field(default_factory=dict)
    constants: dict[str, Scalar] = field(default_factory=dict)
    made: dict[Op, Value] = field(default_factory=dict)
    coordinates: dict[str, str] = field(default_factory=dict)
    extents: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def fold(self, fold: Fold, phase: Phase) -> None:
        self.region(fold.bounds)  # what the regions after it read; the rest goes with the loop
        for s in fold.states:
            self.new[s.value.name] = self.constant(s.init, s.value.dtype)
        self.region(phase.body, {s.value.name for s in fold.states if s.init == 0})
        ends = [self.new.get(u.name, u) for u in phase.updates]
        for s, end in zip(fold.states, ends, strict=True):
            self.new[s.value.name] = end

    def region(self, region: Region, empty: Collection[str] = ()) -> None:
        """The operations of a region; of the ``empty`` states nothing has been added up, and nothing is moved to a new reference."""
        for op in region:
            if isinstance(op, Map) and op.fn == "*" and any(a.name in empty for a in op.args):
                self.new[op.out.name] = self.constant(0.0, op.out.dtype)
                continue
            op = self.spread(op, renamed(op, self.new))
            if isinstance(op, Store):
                self.ops.append(op)
            else:
                self.new[op.out.name] = self.placed(self.whole(op))

    def whole(self, op: Op) -> Op:
        """The bounds of a tile or a block that is the whole rank."""
        if isinstance(op, Size) and "." in op.name:
            rank, _, end = op.name.partition(".")
            if rank in self.sizes:
                size: int | str = 0 if end == "lo" else self.sizes[rank]
                return Const(op.out, size) if isinstance(size, int) else Size(op.out, size)
        return op

    def placed(self, op: Op) -> Value:
        """The value of an operation: one that exists, or a new one."""
        assert not isinstance(op, Store), "a store has no value"
        if isinstance(op, Const):
            return self.constant(op.value, op.out.dtype)
        known = self.known(op) if isinstance(op, Map) else None
        if known is not None:
            return known
        key = computed(op)
        if key not in self.made:
            self.made[key] = self.emit(op)
        return self.made[key]

    def constant(self, value: Scalar, dtype: DType) -> Value:
        key = Const(Value(repr(value), (), dtype), value)
        if key not in self.made:
            self.made[key] = self.emit(Const(Value("c", (), dtype), value))
            self.constants[self.made[key].name] = value
        return self.made[key]

    def emit(self, op: Op) -> Value:
        assert not isinstance(op, Store), "a store has no value"
        name = fresh(op.out.name, self.taken)
        out = replace(op.out, name=name)
        self.ops.append(with_out(op, out))
        if isinstance(op, Coordinate):
            self.coordinates[name] = op.rank
        if isinstance(op, Size):
            self.extents[name] = op.name
        return out

    def spread(self, before: Op, op: Op) -> Op:
        """Operands that became numbers, over their ranks again where an operation mixes points along them."""
        if isinstance(op, Dot) and isinstance(before, Dot):
            start = None if op.acc is None or self.constants.get(op.acc.name) == 0 else self.over(op.acc, op.out.dims)
            known = op.where and self.constants.get(op.where.name)
            where = self.over(op.where, (op.rank,)) if op.where and known is not True else None
            return replace(op, a=self.over(op.a, before.a.dims), b=self.over(op.b, before.b.dims), acc=start, where=where)
        if isinstance(op, Reduce) and isinstance(before, Reduce):
            return replace(op, arg=self.over(op.arg, before.arg.dims))
        return op

    def over(self, v: Value, dims: tuple[str, ...]) -> Value:
        return v if v.dims == dims else self.placed(Map(Value(f"{v.name}_all", dims, v.dtype), "copy", (v,)))

    # -- what constants say --------------------------------------------------------------------------------------------------

    def known(self, op: Map) -> Value | None:
        """The value of an operation that constants decide."""
        values = [self.constants.get(a.name) for a in op.args]
        if op.fn in EXACT and all(v is not None for v in values):
            return self.constant(FUNCTIONS[op.fn].fold(*values), op.out.dtype)
        kept = self.neutral(op, values)
        if kept is not None:
            same = kept.dims == op.out.dims and kept.dtype == op.out.dtype
            return kept if same or kept.name in self.constants else None
        return self.constant(True, "bool") if op.fn == "<" and self.inside(*op.args) else None

    @staticmethod
    def neutral(op: Map, values: Iterable[Scalar | None]) -> Value | None:
        """The operand that an operation gives unchanged."""
        match op.fn, tuple(values):
            case "select", (True, _, _):
                return op.args[1]
            case "select", (False, _, _):
                return op.args[2]
            case ("max" | "min" | "+" | "*" | "and" | "or") as fn, (x, y):
                unit = {"max": float("-inf"), "min": float("inf"), "+": 0, "*": 1, "and": True, "or": False}[fn]
                return op.args[1] if x is not None and x == unit else op.args[0] if y is not None and y == unit else None
        return None

    def inside(self, at: Value, size: Value) -> bool:
        """Whether a coordinate of a rank that is held is compared with the rank's size."""
        rank = self.coordinates.get(at.name)
        if rank is None or rank not in self.sizes:
            return False
        return self.sizes[rank] in (self.extents.get(size.name), self.constants.get(size.name))
