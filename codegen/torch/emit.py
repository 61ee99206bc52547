"""`emit`: a plan as plain torch, one call an operation, tile by tile and block by block: what runs where there is no compiler.

Every value is a tensor with one axis for each ambient rank and for each rank of `KernelPlan.order` (of size 1 where it does not
vary), so that operands broadcast by rank. Ambient ranks are batched, but those that the bounds of a loop depend on are looped over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from einfuse.codegen.plan import (
    Const,
    Coordinate,
    Dot,
    Fold,
    KernelPlan,
    Load,
    Map,
    Op,
    Param,
    Phase,
    Reduce,
    Region,
    Size,
    Store,
    Value,
    code,
    reads,
)
from einfuse.codegen.torch.functions import REDUCTIONS, form, random
from einfuse.codegen.torch.printer import Printer, kind, number

_HELPERS = '''
import torch


def take(tensor, index, clamp=(), where=None):
    """tensor[index...] at every point; points that `where` excludes are not read and give 0."""
    index = [i.clamp(0, n - 1) if axis in clamp or where is not None else i for axis, (i, n) in enumerate(zip(index, tensor.shape))]
    found = tensor[tuple(index)] if index else tensor
    return found if where is None else torch.where(where, found, torch.zeros_like(found))


def product(a, b, x, y, rank):
    """The matrix product of a[x, rank] and b[y, rank], where x, y and rank are the numbers of axes."""
    return (a.movedim((x, rank), (-2, -1)) @ b.movedim((rank, y), (-2, -1))).movedim((-2, -1), (x, y))


def put(tensor, index, value):
    """tensor[index...] = value at every point."""
    shape = torch.broadcast_shapes(value.shape, *(i.shape for i in index))
    tensor[tuple(i.expand(shape) for i in index)] = value.to(tensor.dtype).expand(shape)
'''
_RESERVED = {
    "torch",
    "take",
    "product",
    "put",
    "kernel",
    "tensors",
    "params",
    "sizes",
    "device",
    "real",
    "number",
    "along",
    "at",
    "row",
}


def emit(plan: KernelPlan) -> str:
    """The module's text; ``kernel(tensors, params, sizes)`` runs it."""
    return _Printer(set(_RESERVED), plan=plan).printed()


@dataclass(slots=True)
class _Printer(Printer):
    plan: KernelPlan = field(kw_only=True)
    local: dict[str, str] = field(default_factory=dict)  # sizes that exist only inside a loop

    def axis(self, rank: str) -> int:
        ranks = [*(b.rank for b in self.plan.ambient), *self.plan.order]
        return ranks.index(rank)

    # -------------------------------------------------------------------------------------------------------------- the whole

    def printed(self) -> str:
        plan = self.plan
        real = "torch.float64" if plan.compute == "f64" else "torch.float32"
        axes = len(plan.ambient) + len(plan.order)
        title = [f"# {plan.name}", "#", *(f"#   {x}".rstrip() for x in plan.equations.strip().splitlines())]
        head = ["", "", "def kernel(tensors, params, sizes):"]
        self.line(f"real, device = {real}, tensors[{plan.tensors[0].name!r}].device")
        self.line("number = lambda x, kind: torch.tensor(x, dtype=kind, device=device)")
        self.line(
            f"along = lambda axis, lo, hi: torch.arange(lo, hi, device=device).reshape([-1 if n == axis else 1 for n in range({axes})])"
        )
        looped = self.looped()
        for b in plan.ambient:
            at = self.fresh(f"{b.rank}_all")
            if b.rank in looped:
                self.line(f"for {at} in range({self.extent(b.size)}):")
                self.indent += 1
            span = f"{at}, {at} + 1" if b.rank in looped else f"0, {self.extent(b.size)}"
            self.local[f"point {b.rank}"] = at
            self.local[f"coordinate {b.rank}"] = f"along({self.axis(b.rank)}, {span})"
        self.tile()
        for f in plan.features:
            self.local[f"coordinate {f.rank}"] = f"along({self.axis(f.rank)}, 0, {self.extent(f.size)})"
        plan.walk(self.region, self.fold)
        return "\n".join([*title, _HELPERS.rstrip(), *random(self.lines), *head, *self.lines]) + "\n"

    def extent(self, size: int | str) -> str:
        return str(size) if isinstance(size, int) else f"sizes[{size!r}]"

    def tile(self) -> None:
        tile = self.plan.tile
        if tile is None:
            return
        lo, hi = self.fresh(f"{tile.rank}_lo"), self.fresh(f"{tile.rank}_hi")
        self.line(f"for {lo} in range(0, {self.extent(tile.size)}, {tile.block}):")
        self.indent += 1
        self.line(f"{hi} = min({lo} + {tile.block}, {self.extent(tile.size)})")
        self.local |= {f"{tile.rank}.lo": lo, f"{tile.rank}.hi": hi}
        self.local[f"coordinate {tile.rank}"] = f"along({self.axis(tile.rank)}, {lo}, {hi})"

    def looped(self) -> set[str]:
        """The ambient ranks that bounds of loops depend on, or whose points take turns."""
        ambient = {b.rank for b in self.plan.ambient}
        depends: dict[str, set[str]] = {}
        out = {b.rank for b in self.plan.ambient if b.turns}
        for step in self.plan.steps:
            for op in code(step)[0]:
                if isinstance(op, Coordinate):
                    depends[op.out.name] = {op.rank} & ambient
                elif not isinstance(op, Store):
                    depends[op.out.name] = set().union(*(depends.get(v.name, set()) for v in reads(op)))
        for f in self.plan.folds:
            out |= set(f.table_ranks) if f.tabulated else set()
            for p in () if f.tabulated else f.phases:
                out |= depends.get(p.lo.name, set()) | depends.get(p.hi.name, set())
        return out

    # ------------------------------------------------------------------------------------------------------------- operations

    def region(self, region: Region) -> None:
        for op in region:
            self.operation(op)

    def operation(self, op: Op) -> None:
        if isinstance(op, Store):
            index = ", ".join(map(self.ref, op.index))
            self.line(f"put(tensors[{op.tensor!r}], [{index}], {self.ref(op.value)})")
            return
        text = self.expression(op)
        self.line(f"{self.define(op.out)} = {text}")

    def expression(self, op: Op) -> str:
        match op:
            case Const(out=out, value=value):
                return f"number({number(value)}, {kind(out)})"
            case Coordinate(rank=rank):
                return self.local[f"coordinate {rank}"]
            case Size(out=out, name=name):
                return f"number({self.local.get(name, f'sizes[{name!r}]')}, torch.int64)"
            case Param(out=out, name=name):
                return f"number(params[{name!r}], {kind(out)})"
            case Load():
                return self.load(op)
            case Map(out=out, fn=fn, args=args):
                return form(fn, [(self.ref(a), a.dtype) for a in args], out.dtype)
            case Reduce(reducer=reducer, arg=arg, rank=rank):
                return f"{self.ref(arg)}.{REDUCTIONS[reducer.combine]}({self.axis(rank)}, keepdim=True)"
            case Dot(out=out, a=a, b=b, rank=rank, acc=acc, where=where):
                x, y = out.dims
                left, right = self.ref(a), self.ref(b)
                right = f"torch.where({self.ref(where)}, {right}, 0.0)" if where else right
                left, right = (left, right) if x in a.dims else (right, left)
                text = f"product({left}, {right}, {self.axis(x)}, {self.axis(y)}, {self.axis(rank)})"
                return text if acc is None else f"{self.ref(acc)} + {text}"
        raise AssertionError(f"{type(op).__name__} is not an operation of a plan")

    def load(self, op: Load) -> str:
        args = [f"tensors[{op.tensor!r}]", f"[{', '.join(map(self.ref, op.index))}]"]
        if op.clamp:
            args.append(f"clamp={op.clamp}")
        if op.where is not None:
            args.append(f"where={self.ref(op.where)}")
        return f"take({', '.join(args)}).to({kind(op.out)})"

    # ------------------------------------------------------------------------------------------------------------------ folds

    def fold(self, fold: Fold) -> None:
        self.region(fold.bounds)
        for s in fold.states:
            self.line(
                f"{self.define(s.value)} = torch.full({self.shape(s.value)}, {number(s.init)}, dtype={kind(s.value)}, device=device)"
            )
        for n, p in enumerate(fold.phases):
            self.phase(fold, n, p)

    def phase(self, fold: Fold, n: int, phase: Phase) -> None:
        rank = fold.rank
        names, taken = dict(self.names), set(self.taken)
        lo, hi = self.fresh(f"{rank}_lo"), self.fresh(f"{rank}_hi")
        if fold.tabulated:
            self.line(f"row = {self.table_row(fold)}")
            table = f"tensors['{rank}_block'][row, {n}, :tensors['{rank}_count'][row, {n}]]"
            self.line(f"for {lo} in ({table} * {fold.step}).tolist():  # {phase.label}")
        else:
            self.line(f"for {lo} in range(int({self.ref(phase.lo)}), int({self.ref(phase.hi)}), {fold.step}):  # {phase.label}")
        self.indent += 1
        self.line(f"{hi} = min({lo} + {fold.step}, {self.extent(fold.size)})")
        self.local |= {f"{rank}.lo": lo, f"coordinate {rank}": f"along({self.axis(rank)}, {lo}, {hi})"}
        self.region(phase.body)
        moved = [(s.value, u) for s, u in zip(fold.states, phase.updates, strict=True) if s.value.name != u.name]
        if moved:
            self.line(f"{', '.join(names[s.name] for s, _ in moved)} = {', '.join(self.ref(u) for _, u in moved)}")
        self.indent -= 1
        self.names, self.taken = names, taken

    def shape(self, v: Value) -> str:
        """The extents of a value that varies along all of its ranks, as a state does that no block was folded into."""
        extents = {f.rank: self.extent(f.size) for f in self.plan.features}
        if self.plan.tile:
            rank = self.plan.tile.rank
            extents[rank] = f"{self.local[f'{rank}.hi']} - {self.local[f'{rank}.lo']}"
        ranks = (*(b.rank for b in self.plan.ambient), *self.plan.order)
        return f"[{', '.join(extents[r] if r in v.dims else '1' for r in ranks)}]"

    def table_row(self, fold: Fold) -> str:
        row = "0"
        for r in fold.table_ranks:
            block = next(b for b in self.plan.ambient if b.rank == r)
            row = f"({row} * {self.extent(block.size)} + {self.local[f'point {r}']})"
        tile = self.plan.tile
        if tile is None:
            return row
        lo = self.local[f"{tile.rank}.lo"]
        return f"{row} * -(-{self.extent(tile.size)} // {tile.block}) + {lo} // {tile.block}"
