"""`emit`: a scan's plan as plain torch. What does not read the carried states is computed for all blocks at once, what they need for their
next values in a loop over the blocks, and the rest for all blocks at once again.

Every value is a tensor with one axis for each ambient rank, one for the blocks, and one for each rank of `ScanPlan.order` (of size 1
where it does not vary). All whole blocks are one run of the text, a shorter last one is another.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from einfuse.codegen.plan import Const, Coordinate, Dot, Load, Map, Param, Reduce, Size, Store, Value
from einfuse.codegen.plan.scan import Op, Prefix, Relabel, ScanPlan, Solve, reads
from einfuse.codegen.torch.functions import REDUCTIONS, form, random
from einfuse.codegen.torch.printer import Printer, kind, number

_HELPERS = '''
import torch


def view(tensor, axes, rank, count, lo, blocks, step):
    """The tensor with its axes at the places `axes`, ones elsewhere; along `rank` cut into blocks (axes rank - 1 and rank)."""
    places = []
    for n, place in enumerate(axes):
        if place == rank:
            tensor = tensor.narrow(len(places), lo, blocks * step).unflatten(len(places), (blocks, step))
            places.append(rank - 1)
        elif place == rank - 1:
            tensor = tensor.narrow(len(places), count, blocks)
        places.append(place)
    order = sorted(range(len(places)), key=places.__getitem__)
    tensor = tensor.permute(order)
    for place in range(AXES):
        if place not in places:
            tensor = tensor.unsqueeze(place)
    return tensor


def points(lo, blocks, step, device):
    """The coordinates of the scanned rank, block by block."""
    shape = [blocks if k == BLOCKS else step if k == BLOCKS + 1 else 1 for k in range(AXES)]
    return (lo + torch.arange(blocks * step, device=device)).reshape(shape)


def take(tensor, index, clamp=()):
    """tensor[index...] at every point."""
    index = [i.clamp(0, n - 1) if axis in clamp else i for axis, (i, n) in enumerate(zip(index, tensor.shape))]
    return tensor[tuple(index)] if index else tensor


def product(a, b, x, y, rank):
    """The matrix product of a[x, rank] and b[y, rank], where x, y and rank are the numbers of axes."""
    a, b = a.movedim((x, rank), (-2, -1)), b.movedim((rank, y), (-2, -1))
    return (a @ b).movedim((-2, -1), (x, y))


def solve(matrix, known, row, column, upwards):
    """The x with x = known + matrix x, where matrix is strictly triangular over its axes row and column, and x goes along row."""
    matrix = -matrix.movedim((row, column), (-2, -1)).tril(-1)
    known = known.movedim(row, -2)
    out = torch.linalg.solve_triangular(matrix.mT if upwards else matrix, known, upper=upwards, unitriangular=True)
    return out.movedim(-2, row)


def prefix(x, axis, reverse, exclusive):
    """Running sums along an axis, from its end where reverse, without the point itself where exclusive."""
    x = x.flip(axis) if reverse else x
    if exclusive:
        x = torch.cat([torch.zeros_like(x.narrow(axis, 0, 1)), x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    x = x.cumsum(axis)
    return x.flip(axis) if reverse else x


def parts(x, blocks):
    """x block by block."""
    return x.split(1, BLOCKS) if x.shape[BLOCKS] > 1 else [x] * blocks
'''
_RESERVED = {
    "torch",
    "view",
    "take",
    "product",
    "solve",
    "prefix",
    "parts",
    "kernel",
    "tensors",
    "params",
    "sizes",
    "device",
    "real",
    "number",
}
_RESERVED |= {"lo", "blocks", "step", "first", "at", "along", "AXES", "BLOCKS", "sorted", "range", "len", "reversed", "min"}


def emit(plan: ScanPlan) -> str:
    """The module's text; ``kernel(tensors, params, sizes)`` runs it."""
    return _Printer(set(_RESERVED), plan=plan).printed()


@dataclass(slots=True)
class _Printer(Printer):
    plan: ScanPlan = field(kw_only=True)
    coordinates: dict[str, str] = field(default_factory=dict)  # values that are the plain coordinate of a rank

    def axis(self, rank: str) -> int:
        blocks = len(self.plan.ambient)
        if rank == self.plan.count:
            return blocks
        if rank in self.plan.order:
            return blocks + 1 + self.plan.order.index(rank)
        return next(n for n, b in enumerate(self.plan.ambient) if b.rank == rank)

    # -- the whole ---------------------------------------------------------------------------------------------------------------

    def printed(self) -> str:
        plan = self.plan
        axes = len(plan.ambient) + 1 + len(plan.order)
        real = "torch.float64" if plan.compute == "f64" else "torch.float32"
        title = [f"# {plan.name}", "#", *(f"#   {x}".rstrip() for x in plan.equations.strip().splitlines())]
        head = [f"AXES, BLOCKS = {axes}, {len(plan.ambient)}", "", "", "def kernel(tensors, params, sizes):"]
        size = self.extent(plan.size)
        self.line(f"real, device = {real}, tensors[{plan.tensors[0].name!r}].device")
        self.line("number = lambda x, kind: torch.tensor(x, dtype=kind, device=device)")
        self.line(
            "along = lambda axis, n: torch.arange(n, device=device).reshape([-1 if k == axis else 1 for k in range(AXES)])"
        )
        self.line("lo, blocks, step = 0, 1, 1")
        for op in plan.before:
            self.operation(op)
        shape = [self.extent(b.size) for b in plan.ambient] + ["1"]
        for s in plan.states:
            own = [str(self.feature(r)) if r in s.value.dims else "1" for r in plan.order]
            self.line(
                f"{self.define(s.value)} = {self.ref(s.init)} + torch.zeros([{', '.join(shape + own)}], dtype=real, device=device)"
            )
        self.line(f"whole, rest = divmod({size}, {plan.step})")
        runs = f"((0, whole, {plan.step}), (whole * {plan.step}, 1, rest))"
        self.line(f"for lo, blocks, step in {'reversed(' + runs + ')' if plan.reverse else runs}:")
        self.indent += 1
        self.line("if blocks == 0 or step == 0:")
        self.line("    continue")
        self.line(f"first = lo // {plan.step}")
        self.run()
        self.indent -= 1
        self.line("lo, blocks, step = 0, 1, 1")
        for op in plan.after:
            self.operation(op)
        return "\n".join([*title, _HELPERS.rstrip(), *random(self.lines), "", "", *head, *self.lines]) + "\n"

    def extent(self, size: int | str) -> str:
        return str(size) if isinstance(size, int) else f"sizes[{size!r}]"

    def feature(self, rank: str) -> int:
        size = next(f.size for f in self.plan.features if f.rank == rank)
        assert isinstance(size, int), "sizes of features are known"
        return size

    def run(self) -> None:
        """One run of blocks: before the loop, the loop, after it."""
        plan = self.plan
        carried = {s.value.name for s in plan.states}
        depends = set(carried)
        for op in plan.body:
            if not isinstance(op, Store) and any(v.name in depends for v in reads(op)):
                depends.add(op.out.name)
        needed = {s.update.name for s in plan.states}
        loop: list[Op] = []
        for op in reversed(plan.body):
            if not isinstance(op, Store) and op.out.name in needed & depends:
                loop.append(op)
                needed |= {v.name for v in reads(op)}
        loop.reverse()
        inside = {op.out.name for op in loop if not isinstance(op, Store)}
        early = [op for op in plan.body if not isinstance(op, Store) and op.out.name not in depends]
        late = [op for op in plan.body if isinstance(op, Store) or op.out.name in depends - inside]
        for op in early:
            self.operation(op)
        names = dict(self.names)
        kept = [v for op in late for v in reads(op) if v.name in inside | carried]
        kept = list({v.name: v for v in kept}.values())
        self.loop(loop, {op.out.name for op in early if not isinstance(op, Store)}, kept)
        final = {s.value.name: self.names[s.value.name] for s in plan.states}
        for v in kept:
            self.names[v.name] = self.names[f"all {v.name}"]
        for op in late:
            self.operation(op)
        self.names = {**names, **final}

    def loop(self, loop: list[Op], early: set[str], kept: list[Value]) -> None:
        """The blocks one by one: only what the states need for their next values."""
        plan = self.plan
        reads_ = {v.name: v for op in loop for v in reads(op) if v.name in early and v.name}
        reads_ |= {s.update.name: s.update for s in plan.states if s.update.name in early}
        cut = {}
        for name, v in reads_.items():
            if v.name in self.coordinates.keys() and not v.dims:
                continue
            cut[name] = self.fresh(f"{v.name}_parts")
            self.line(
                f"{cut[name]} = parts({self.ref(v)}, blocks)" if self.blocked(v) else f"{cut[name]} = [{self.ref(v)}] * blocks"
            )
        for v in kept:
            self.names[f"list {v.name}"] = self.fresh(f"{v.name}_list")
            self.line(f"{self.names[f'list {v.name}']} = [None] * blocks")
        self.line(f"for at in {'reversed(range(blocks))' if plan.reverse else 'range(blocks)'}:")
        self.indent += 1
        carried = {s.value.name for s in plan.states}
        for v in kept:
            if v.name in carried:
                self.line(f"{self.names[f'list {v.name}']}[at] = {self.ref(v)}")
        outside = dict(self.names)
        for name, text in cut.items():
            self.names[name] = f"{text}[at]"
        for op in loop:
            self.operation(op)
            if not isinstance(op, Store) and any(v.name == op.out.name for v in kept):
                self.line(f"{outside[f'list {op.out.name}']}[at] = {self.ref(op.out)}")
        if plan.states:
            left = ", ".join(outside[s.value.name] for s in plan.states)
            self.line(f"{left} = {', '.join(self.ref(s.update) for s in plan.states)}")
        else:
            self.line("pass")
        self.indent -= 1
        self.names = outside
        for v in kept:
            name = self.names[f"all {v.name}"] = self.fresh(f"{v.name}_all")
            self.line(f"{name} = torch.cat({self.names[f'list {v.name}']}, BLOCKS)")

    def blocked(self, v: Value) -> bool:
        """Is the value a tensor with an axis for the blocks (and not a plain number)?"""
        return v.name not in self.numbers

    @property
    def numbers(self) -> set[str]:
        every = (*self.plan.before, *self.plan.body)
        return {op.out.name for op in every if isinstance(op, Const | Param | Size)}

    # -- operations --------------------------------------------------------------------------------------------------------------

    def operation(self, op: Op) -> None:
        if isinstance(op, Store):
            self.line(f"{self.placed(op.tensor, op.index)}.copy_({self.ref(op.value)})")
            return
        text = self.expression(op)
        self.line(f"{self.define(op.out)} = {text}")

    def placed(self, tensor: str, index: tuple[Value, ...]) -> str:
        plan = self.plan
        axes = ", ".join(str(self.axis(self.coordinates[v.name])) for v in index)
        return f"view(tensors[{tensor!r}], [{axes}], {self.axis(plan.rank)}, lo // {plan.step}, lo, blocks, step)"

    def expression(self, op: Op) -> str:
        match op:
            case Const(out=out, value=value):
                return f"number({number(value)}, {kind(out)})"
            case Coordinate(out=out, rank=rank):
                self.coordinates[out.name] = rank
                return self.coordinate(rank)
            case Size(out=out, name=name):
                return f"number(sizes[{name!r}], torch.int64)"
            case Param(out=out, name=name):
                return f"number(params[{name!r}], {kind(out)})"
            case Load():
                return self.load(op)
            case Map(out=out, fn=fn, args=args):
                return form(fn, [(self.ref(a), a.dtype) for a in args], out.dtype)
            case Reduce(reducer=reducer, arg=arg, rank=rank):
                return f"{self.ref(arg)}.{REDUCTIONS[reducer.combine]}({self.axis(rank)}, keepdim=True)"
            case Dot(out=out, a=a, b=b, rank=rank):
                x, y = out.dims
                a, b = (a, b) if x in a.dims else (b, a)
                return f"product({self.ref(a)}, {self.ref(b)}, {self.axis(x)}, {self.axis(y)}, {self.axis(rank)})"
            case Relabel(arg=arg, moved=(old, new)):
                return f"{self.ref(arg)}.transpose({self.axis(old)}, {self.axis(new)})"
            case Prefix(arg=arg, rank=rank, reverse=reverse, exclusive=exclusive):
                return f"prefix({self.ref(arg)}, {self.axis(rank)}, {reverse}, {exclusive})"
            case Solve(out=out, matrix=matrix, known=known, transposed=transposed):
                row, column = map(self.axis, matrix.dims)
                return f"solve({self.ref(matrix)}, {self.ref(known)}, {row}, {column}, {transposed})"
        raise AssertionError(f"{type(op).__name__} is not an operation of a plan")

    def coordinate(self, rank: str) -> str:
        plan = self.plan
        if rank == plan.rank:
            return "points(lo, blocks, step, device)"
        if rank == plan.count:
            return "first + along(BLOCKS, blocks)"
        size = next((b.size for b in (*plan.ambient, *plan.features) if b.rank == rank), 0)
        return f"along({self.axis(rank)}, {self.extent(size)})"

    def load(self, op: Load) -> str:
        plain = not op.clamp and op.where is None and all(v.name in self.coordinates for v in op.index)
        ranks = [self.coordinates.get(v.name) for v in op.index]
        if plain and op.index and len(set(ranks)) == len(ranks):
            return f"{self.placed(op.tensor, op.index)}.to({kind(op.out)})"
        return f"take(tensors[{op.tensor!r}], [{', '.join(map(self.ref, op.index))}], {op.clamp}).to({kind(op.out)})"
