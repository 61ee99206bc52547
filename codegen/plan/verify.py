"""The rules of a plan. `verify` raises AssertionError that names the kernel, the operation and the rule: only we can cause that.

1. A value is defined once before it is read, and read as it was defined; phases of one fold may use each other's names.
2. The ranks of a value are ranks of the plan in the order of `KernelPlan.order`; those of a fold's rank exist in its phases alone.
3. Operations have the ranks and types of their operands: a map spans theirs, a reduction drops one, a product contracts one (row by row
   where both operands have the same).
4. Tensors, numbers and sizes are declared; a tensor is read or written with an index for each axis; only outputs are stored to.
5. A phase updates every state of its fold by a value that spans no more and has its type; a state does not span its fold's rank.
6. The bounds of phases are whole numbers without ranks; a fold has the size of its rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from einfuse.codegen.plan import nodes as kp
from einfuse.codegen.plan.text import shown
from einfuse.ir import REDUCERS


def verify(plan: kp.KernelPlan) -> None:
    """Raises AssertionError where the plan breaks one of the rules above."""
    _Checked(plan).whole()


@dataclass(slots=True)
class _Checked:
    plan: kp.KernelPlan
    known: dict[str, kp.Value] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    inside: str | None = None  # the rank of the fold that is looked at

    def whole(self) -> None:
        self.ensure(len(set(self.plan.order)) == len(self.plan.order), "a rank is tiled, folded or held once")
        self.plan.walk(self.region, self.fold)

    def ensure(self, holds: bool, rule: str, op: kp.Op | None = None) -> None:
        assert holds, f"plan {self.plan.name}: {rule}" + (f": {shown(op)}" if op is not None else "")

    def fold(self, fold: kp.Fold) -> None:
        self.region(fold.bounds)
        self.ensure(fold.step > 0, f"the step over {fold.rank} is positive")
        for r in fold.table_ranks:
            self.ensure(r in {b.rank for b in self.plan.ambient}, f"tables of {fold.rank} are by ambient ranks, not {r}")
        for s in fold.states:
            self.define(s.value)
            self.ensure(fold.rank not in s.value.dims, f"state {s.value.name} does not span {fold.rank}")
        for phase in fold.phases:
            self.phase(fold, phase)

    def phase(self, fold: kp.Fold, phase: kp.Phase) -> None:
        for bound in (phase.lo, phase.hi):
            self.reads(bound)
            self.ensure(bound.dtype == "int" and not bound.dims, f"bound {bound.name} is a whole number without ranks")
        known, names, self.inside = dict(self.known), set(self.names), fold.rank
        self.region(phase.body)
        self.ensure(len(phase.updates) == len(fold.states), f"a phase over {fold.rank} updates every state")
        for s, update in zip(fold.states, phase.updates, strict=True):
            self.reads(update)
            fits = set(update.dims) <= set(s.value.dims) and update.dtype == s.value.dtype
            self.ensure(fits, f"{update.name} has the ranks and type of the state {s.value.name}")
        self.known, self.names, self.inside = known, names, None

    def region(self, region: kp.Region) -> None:
        for op in region:
            for v in kp.reads(op):
                self.reads(v, op)
            self.operation(op)
            if not isinstance(op, kp.Store):
                self.define(op.out, op)

    def reads(self, v: kp.Value, op: kp.Op | None = None) -> None:
        self.ensure(self.known.get(v.name) == v, f"{v.name} is defined before it is read, and read as defined", op)

    def define(self, v: kp.Value, op: kp.Op | None = None) -> None:
        self.ensure(v.name not in self.names, f"{v.name} is defined once", op)
        order = self.plan.order
        self.ensure(all(r in order for r in v.dims), f"{v.name} spans ranks of the plan", op)
        self.ensure(
            list(v.dims) == sorted(set(v.dims), key=order.index), f"the ranks of {v.name} are in the order of the plan", op
        )
        folds = {f.rank for f in self.plan.folds} - {self.inside}
        self.ensure(not folds & set(v.dims), f"{v.name} spans a folded rank inside its loop alone", op)
        self.names.add(v.name)
        self.known[v.name] = v

    # -------------------------------------------------------------------------------------------------------------- operations

    def operation(self, op: kp.Op) -> None:
        match op:
            case kp.Const(out=out):
                self.ensure(not out.dims, "a constant has no ranks", op)
            case kp.Coordinate(out=out, rank=rank):
                ambient = rank in {b.rank for b in self.plan.ambient}
                self.ensure(
                    out.dtype == "int" and out.dims == (() if ambient else (rank,)), "a coordinate is an int over its rank", op
                )
            case kp.Size(out=out, name=name):
                self.ensure(out.dtype == "int" and not out.dims and name in self.sizes(), "a size is declared", op)
            case kp.Param(out=out, name=name):
                self.ensure(dict(self.plan.params).get(name) == out.dtype and not out.dims, "a number is declared", op)
            case kp.Load() | kp.Store():
                self.access(op)
            case kp.Map(out=out, fn=fn, args=args):
                counts = (2, 3) if fn == "exp_difference" else (kp.FUNCTIONS[fn].arity,) if fn in kp.FUNCTIONS else ()
                self.ensure(bool(counts), "a map is a function of plans, or exp_difference(y, m, c) = exp(c * y - m)", op)
                self.ensure(set().union(*(a.dims for a in args)) <= set(out.dims), "a map spans the ranks of its operands", op)
                self.ensure(len(args) in counts, f"{fn} takes {' or '.join(map(str, counts))} operands", op)
            case kp.Reduce(out=out, fn=fn, arg=arg, rank=rank, instead=instead, at=at):
                self.ensure(
                    fn in REDUCERS and REDUCERS[fn].monoid and rank in arg.dims, "a reduction is over a rank of its operand", op
                )
                left = tuple(r for r in arg.dims if r != rank)
                if at is None:
                    self.ensure(out.dims == left, "a reduction drops its rank alone", op)
                else:
                    placed = (
                        fn == "sum" and at.dtype == "int" and at.dims == arg.dims and out.dims[:-1] == left and rank in arg.dims
                    )
                    self.ensure(placed, "a sum by place has a last rank of places beside those that are left", op)
                like = instead is None or (fn == "any" and instead.dtype == "bool" and set(instead.dims) <= set(out.dims))
                self.ensure(like, "what an any may be taken to be is a bool over its ranks", op)
            case kp.Dot(out=out, a=a, b=b, rank=rank, acc=acc, where=where):
                x, y = set(a.dims), set(b.dims)
                shared = x & y == {rank} or (x == y and rank in x)  # the second: row by row
                self.ensure(shared and len(x) == len(y) == 2, "a product shares the rank that it sums over, alone or all", op)
                self.ensure(set(out.dims) == (x | y) - {rank} and out.dtype == "float", "a product spans the other ranks", op)
                self.ensure(acc is None or acc.dims == out.dims, "a product adds to a block of its own ranks", op)
                named = where is None or (where.dtype == "bool" and where.dims == (rank,))
                self.ensure(named, "which points of a product exist is a bool over its rank", op)

    def access(self, op: kp.Load | kp.Store) -> None:
        args = self.plan.named
        self.ensure(op.tensor in args, f"{op.tensor} is a tensor of the plan", op)
        arg = args[op.tensor]
        self.ensure(len(op.index) == arg.axes, f"{op.tensor} has {arg.axes} axes", op)
        self.ensure(all(v.dtype == "int" for v in op.index), "an index is a whole number", op)
        if isinstance(op, kp.Store):
            self.ensure(arg.out, f"{op.tensor} is an output", op)
            return
        used = set().union(*(v.dims for v in op.index), op.where.dims if op.where else ())
        self.ensure(used <= set(op.out.dims), "a load spans the ranks of its indices", op)
        self.ensure(all(0 <= n < arg.axes for n in op.clamp), "clamped axes exist", op)
        self.ensure(op.where is None or op.where.dtype == "bool", "a condition is a bool", op)

    def sizes(self) -> set[str]:
        tile = {f"{self.plan.tile.rank}.lo", f"{self.plan.tile.rank}.hi"} if self.plan.tile else set()
        return {*self.plan.sizes, *tile, *((f"{self.inside}.lo",) if self.inside else ())}
