"""`emit`: a scan's plan as a Triton module. Blocks are padded to powers of two.

One program for each point of the ambient ranks and share of the shared rank, which runs the blocks in order; for each block as well where
they do not depend on each other.

Padding (features beyond their size, points of a short last block) holds no defined value: what sums over it puts zeros there first.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from einfuse.codegen.plan import Const, Coordinate, Dot, Load, Map, Param, Reduce, Size, Store, Value
from einfuse.codegen.scan.plan import Op, Prefix, Relabel, ScanPlan, Solve
from einfuse.codegen.triton.functions import FORMS, Operand, Target, operand_type
from einfuse.codegen.triton.helpers import sources
from einfuse.codegen.triton.names import identifier

STORED = {"f64": "tl.float64", "f32": "tl.float32", "bf16": "tl.bfloat16", "f16": "tl.float16"}
IDENTITY = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")', "any": "0"}
LEAST = 16
"""The smallest block that a matrix product takes."""


def emit(plan: ScanPlan, warps: int = 8) -> str:
    """The module's text: its equations, the kernel, and ``launch(tensors, params, sizes)``; ``warps`` are those of its launches."""
    return _Printer(plan, warps).printed()


@dataclass(slots=True)
class _Printer:
    plan: ScanPlan
    warps: int
    lines: list[str] = field(default_factory=list)
    indent: int = 1
    names: dict[str, str] = field(default_factory=dict)
    literals: dict[str, float | int | bool] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    helpers: set[str] = field(default_factory=set)

    # -- the whole ---------------------------------------------------------------------------------------------------------------

    def printed(self) -> str:
        plan = self.plan
        arguments, passed = self.arguments()
        self.start()
        for op in plan.before:
            self.operation(op)
        for s in plan.states:
            name = self.define(s.value)
            shape = ", ".join(str(self.width(r)) for r in s.value.dims)
            zero = f"tl.zeros([{shape}], {self.real})" if s.value.dims else f"tl.full([], 0.0, {self.real})"
            self.line(f"{name} = {zero} + {self.ref(s.init)}")
        if plan.states:
            self.line(f"blocks = ({self.extent(plan.size)} + {plan.step - 1}) // {plan.step}")
            self.line("for turn in range(0, blocks):")
            self.indent += 1
            self.line(f"block = {'blocks - 1 - turn' if plan.reverse else 'turn'}")
        for r in plan.moving:
            self.line(f"at_{identifier(r)} = block * {plan.step} + tl.arange(0, {self.width(r)})")
            self.line(
                f"ok_{identifier(r)} = (at_{identifier(r)} < {self.extent(plan.size)}) & (tl.arange(0, {self.width(r)}) < {plan.step})"
            )
        states = {s.value.name: self.names[s.value.name] for s in plan.states}
        for op in plan.body:
            self.operation(op)
        if plan.states:
            left = ", ".join(states[s.value.name] for s in plan.states)
            self.line(f"{left} = {', '.join(self.whole(s.update, s.value.dims) for s in plan.states)}")
            self.indent -= 1
        for op in plan.after:
            self.operation(op)
        programs = [self.extent(b.size, host=True) for b in plan.ambient]
        what = [b.rank for b in plan.ambient]
        if not plan.states:
            programs.append(f"(({self.extent(plan.size, host=True)} + {plan.step - 1}) // {plan.step})")
            what.append(f"block of {plan.rank}")
        if plan.parts > 1:
            programs.append(str(plan.parts))
            what.append(f"share of {plan.shared}")
        title = "\n".join([f"{plan.name}", "", *(f"    {x}".rstrip() for x in plan.equations.strip().splitlines())])
        body, kernel = "\n".join(self.lines), identifier(plan.name)
        helpers = "".join(f"\n\n{x}\n" for x in sources(self.helpers, plan.compute))
        return (
            f'"""{title}\n"""\n\nimport torch\nimport triton\nimport triton.language as tl\n\n'
            f"LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)\n{helpers}\n\n"
            f"@triton.jit\ndef {kernel}({', '.join(arguments)}):\n{body}\n\n\n"
            f"def launch(tensors, params, sizes, num_warps={self.warps}, num_stages=1):\n"
            f'    """One program for each {", ".join(what) or "call"}."""\n'
            f"    programs = {' * '.join(programs) or '1'}\n"
            f"    return {kernel}[(programs,)]({', '.join(passed)}, num_warps=num_warps, num_stages=num_stages)\n"
        )

    @property
    def real(self) -> str:
        return "tl.float64" if self.plan.compute == "f64" else "tl.float32"

    def arguments(self) -> tuple[list[str], list[str]]:
        names, passed = [], []
        for t in self.plan.tensors:
            names.append(f"{identifier(t.name)}_ptr")
            passed.append(f"tensors[{t.name!r}]")
        for t in self.plan.tensors:
            for n in range(t.axes):
                names += [f"{identifier(t.name)}_s{n}", f"{identifier(t.name)}_n{n}"]
                passed += [f"tensors[{t.name!r}].stride({n})", f"tensors[{t.name!r}].shape[{n}]"]
        for name in self.plan.sizes:
            names.append(f"size_{identifier(name)}")
            passed.append(f"sizes[{name!r}]")
        for name, _ in self.plan.params:
            names.append(f"param_{identifier(name)}")
            passed.append(f"params[{name!r}]")
        return names, passed

    def start(self) -> None:
        plan = self.plan
        self.line("item = tl.program_id(0).to(tl.int64)")
        if plan.parts > 1:
            self.line(f"part = (item % {plan.parts}).to(tl.int32)")
            self.line(f"item = item // {plan.parts}")
        if not plan.states:
            self.line(f"blocks = ({self.extent(plan.size)} + {plan.step - 1}) // {plan.step}")
            self.line("block = (item % blocks).to(tl.int32)")
            self.line("item = item // blocks")
        for b in reversed(self.plan.ambient):
            self.line(f"at_{identifier(b.rank)} = item % {self.extent(b.size)}")
            self.line(f"item = item // {self.extent(b.size)}")
        for f in plan.features:
            first = f"part * {f.block} + " if f.block != f.size else ""
            self.line(f"at_{identifier(f.rank)} = {first}tl.arange(0, {self.width(f.rank)})")
            within = f" & (tl.arange(0, {self.width(f.rank)}) < {f.block})" if self.width(f.rank) != f.block != f.size else ""
            self.line(f"ok_{identifier(f.rank)} = (at_{identifier(f.rank)} < {f.size}){within}")

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def extent(self, size: int | str, host: bool = False) -> str:
        if isinstance(size, int):
            return str(size)
        return f"sizes[{size!r}]" if host else f"size_{identifier(size)}"

    def width(self, rank: str) -> int:
        """The padded extent of a rank."""
        if rank in self.plan.moving:
            return power(self.plan.step) if self.plan.step > 1 else 1
        return max(power(next(f.block for f in self.plan.features if f.rank == rank)), LEAST)

    def padded(self, rank: str) -> bool:
        if rank in self.plan.moving:
            return True
        f = next(f for f in self.plan.features if f.rank == rank)
        assert isinstance(f.size, int), "sizes of features are known"
        return f.size % f.block != 0 or f.block != self.width(rank)

    # -- values ------------------------------------------------------------------------------------------------------------------

    def define(self, v: Value) -> str:
        text, n = f"v_{identifier(v.name)}", 1
        while text in self.taken:
            n += 1
            text = f"v_{identifier(v.name)}_{n}"
        self.taken.add(text)
        self.names[v.name] = text
        return text

    def ref(self, v: Value) -> str:
        return _literal(self.literals[v.name]) if v.name in self.literals else self.names[v.name]

    def view(self, v: Value, dims: tuple[str, ...]) -> str:
        """The value with an axis for each of ``dims``."""
        text = self.ref(v)
        if not v.dims or v.dims == dims:
            return text
        return f"{text}[{', '.join(':' if d in v.dims else 'None' for d in dims)}]"

    def whole(self, v: Value, dims: tuple[str, ...]) -> str:
        """The value at every point of ``dims``."""
        if v.dims == dims and v.name not in self.literals:
            return self.ref(v)
        shape = ", ".join(str(self.width(d)) for d in dims)
        return (
            f"tl.zeros([{shape}], {self.real}) + {self.view(v, dims)}"
            if dims
            else f"tl.full([], 0.0, {self.real}) + {self.ref(v)}"
        )

    def lane(self, rank: str, dims: tuple[str, ...], what: str) -> str:
        text = f"{what}_{identifier(rank)}"
        return text if dims == (rank,) else f"{text}[{', '.join(':' if d == rank else 'None' for d in dims)}]"

    def inside(self, dims: tuple[str, ...]) -> str | None:
        """The condition that a point of ``dims`` exists."""
        parts = [self.lane(r, dims, "ok") for r in dims if self.padded(r)]
        return " & ".join(parts) if parts else None

    def clean(self, v: Value, ranks: tuple[str, ...], identity: str = "0.0") -> str:
        """The value with the identity in the padding of ``ranks``."""
        parts = [self.lane(r, v.dims, "ok") for r in ranks if self.padded(r)]
        return f"tl.where({' & '.join(parts)}, {self.ref(v)}, {identity})" if parts else self.ref(v)

    # -- operations --------------------------------------------------------------------------------------------------------------

    def operation(self, op: Op) -> None:
        if isinstance(op, Store):
            self.store(op)
        elif isinstance(op, Const):
            self.literals[op.out.name] = op.value
        elif isinstance(op, Coordinate):
            numbers = {self.plan.count: "block", "<part>": "part"}
            self.names[op.out.name] = numbers.get(op.rank, f"at_{identifier(op.rank)}")
        elif isinstance(op, Size):
            self.names[op.out.name] = f"size_{identifier(op.name)}"
        elif isinstance(op, Param):
            self.names[op.out.name] = f"param_{identifier(op.name)}"
        elif isinstance(op, Solve):
            self.solve(op)
        else:
            text = self.expression(op)
            self.line(f"{self.define(op.out)} = {text}")

    def expression(self, op: Op) -> str:
        match op:
            case Load():
                return self.load(op)
            case Map():
                return self.map(op)
            case Reduce(fn=fn, arg=arg, rank=rank):
                call = {"sum": "tl.sum", "max": "tl.max", "min": "tl.min", "any": "tl.max"}[fn]
                return f"{call}({self.clean(arg, (rank,), IDENTITY[fn])}, {arg.dims.index(rank)})"
            case Prefix(arg=arg, rank=rank, reverse=reverse, exclusive=exclusive):
                kept = self.clean(arg, (rank,))
                text = f"tl.cumsum({kept}, {arg.dims.index(rank)}, reverse={reverse})"
                return f"{text} - {kept}" if exclusive else text
            case Dot():
                return self.dot(op)
            case Relabel(out=out, arg=arg, moved=(old, new)):
                now = tuple(new if d == old else d for d in arg.dims)
                order = [now.index(d) for d in out.dims]
                return self.ref(arg) if order == sorted(order) else f"tl.permute({self.ref(arg)}, {order})"
        raise AssertionError(f"{type(op).__name__} is not an operation of a plan")

    def map(self, op: Map) -> str:
        kind = operand_type(op.fn, tuple(a.dtype for a in op.args))
        types = {"float": self.real, "int": "tl.int32", "bool": "tl.int1"}
        operands = []
        for n, a in enumerate(op.args):
            text, value = self.view(a, op.out.dims), self.literals.get(a.name)
            if kind is not None and a.dtype != kind and not (op.fn == "select" and n == 0):
                text, value = (
                    (f"tl.cast({text}, {types[kind]})", None) if value is None else (_literal(float(value)), float(value))
                )
            operands.append(
                Operand(
                    text if value is not None or re.fullmatch(r"[\w.\[\]:, ]+|tl\.cast\(.*\)", text) else f"({text})", value
                )
            )
        if op.fn in ("float", "int"):
            return f"tl.cast({operands[0].bare}, {types[op.out.dtype]})"
        return FORMS[op.fn](
            tuple(operands), Target(types[op.out.dtype], self.helpers, self.plan.compute == self.plan.narrow == "f32")
        )

    def address(self, tensor: str, index: tuple[Value, ...], dims: tuple[str, ...], clamp: tuple[int, ...]) -> str:
        terms = [f"{identifier(tensor)}_ptr"]
        for n, v in enumerate(index):
            at = self.view(v, dims)
            if n in clamp:
                at = f"tl.minimum(tl.maximum({at}, 0), {identifier(tensor)}_n{n} - 1)"
            terms.append(
                f"tl.cast({at}, tl.int64) * {identifier(tensor)}_s{n}"
                if v.name not in self.literals
                else f"{at} * {identifier(tensor)}_s{n}"
            )
        return " + ".join(terms)

    def load(self, op: Load) -> str:
        dims = op.out.dims
        kind = {"float": self.real, "int": "tl.int32", "bool": "tl.int1"}[op.out.dtype]
        condition = self.inside(dims)
        extra = f", mask={condition}, other=0" if condition else ""
        return f"tl.load({self.address(op.tensor, op.index, dims, op.clamp)}{extra}).to({kind})"

    def store(self, op: Store) -> None:
        dims = tuple(r for r in self.plan.order if r in {d for v in (*op.index, op.value) for d in v.dims})
        condition = self.inside(dims)
        partial = any(p.tensor == op.tensor and "part" in p.axes for p in self.plan.partial)
        if self.plan.parts > 1 and not partial and self.plan.shared not in dims:  # the same in all of them
            # a scalar condition beside a block is no condition in Triton's interpreter: a zero for every point makes it a block
            first = " + ".join(["part", *(f"0 * {self.lane(r, dims, 'at')}" for r in dims)]) + " == 0"
            condition = f"({condition}) & ({first})" if condition else first
        extra = f", mask={condition}" if condition else ""
        storage = next(t.storage for t in self.plan.tensors if t.name == op.tensor)
        value = self.whole(op.value, dims)
        self.line(f"tl.store({self.address(op.tensor, op.index, dims, ())}, {self.stored(value, storage)}{extra})")

    def stored(self, text: str, storage: str) -> str:
        """A float in the type of a tensor."""
        if storage == "bf16":  # Triton's interpreter would cut it off
            self.helpers.add("_bf16")
            return f"_bf16({text})"
        return f"({text}).to({STORED[storage]})"

    def dot(self, op: Dot) -> str:
        x, y = op.out.dims
        a, b = (op.a, op.b) if x in op.a.dims else (op.b, op.a)
        left, right = self.clean(a, (op.rank,)), self.clean(b, (op.rank,))
        if a.dims != (x, op.rank):
            left = f"tl.trans({left})"
        if b.dims != (op.rank, y):
            right = f"tl.trans({right})"
        if min(self.width(r) for r in (x, y, op.rank)) < LEAST:  # a scan point by point: no matrix is large enough
            return f"tl.sum(({left})[:, :, None] * ({right})[None, :, :], 1)"
        if self.plan.narrow in ("bf16", "f16"):
            product = "_dot" if self.plan.narrow == "bf16" else "tl.dot"
            self.helpers |= {"_dot"} if self.plan.narrow == "bf16" else set()
            return f"{product}({self.stored(left, self.plan.narrow)}, {self.stored(right, self.plan.narrow)})"
        return f'tl.dot({left}, {right}, input_precision="ieee", out_dtype={self.real})'

    def solve(self, op: Solve) -> None:
        """Row by row: a row of the result is its known part and the earlier rows times a row of the matrix."""
        i, other = op.matrix.dims
        size, known, v = self.width(i), op.known, op.out
        matrix, out = f"v_{identifier(v.name)}_matrix", self.define(v)
        self.line(f"{matrix} = {self.clean(op.matrix, (i, other))}")
        self.line(f"{out} = {self.whole(known, v.dims)}")
        self.line(f"for row in range(0, {size}):")
        self.indent += 1
        self.line(f"here = {f'{size} - 1 - row' if op.transposed else 'row'}")
        lane = f"tl.arange(0, {size})"
        if op.transposed:
            self.line(f"weights = tl.sum(tl.where(({lane} == here)[None, :], {matrix}, 0.0), 1)")
        else:
            self.line(f"weights = tl.sum(tl.where(({lane} == here)[:, None], {matrix}, 0.0), 0)")
        spread = ", ".join(":" if d == i else "None" for d in v.dims)
        weights, chosen = (
            (f"weights[{spread}]", f"({lane} == here)[{spread}]") if len(v.dims) > 1 else ("weights", f"{lane} == here")
        )
        self.line(f"more = tl.sum({weights} * {out}, {v.dims.index(i)})")
        rest = ", ".join("None" if d == i else ":" for d in v.dims)
        more = f"more[{rest}]" if len(v.dims) > 1 else "more"
        self.line(f"{out} = tl.where({chosen}, {out} + {more}, {out})")
        self.indent -= 1


def power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _literal(value: float | int | bool) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value) if not isinstance(value, int | float) or value >= 0 else f"({value!r})"
