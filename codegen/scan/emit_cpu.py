"""`emit`: a scan's plan as one C++ function. Threads share the points of the ambient ranks and the parts of a shared rank; each runs the
blocks in order, or one of them where they do not depend on each other.

Blocks of floats that products, systems or several readers need lie in a buffer of the thread, with rows padded to whole vectors;
everything else is computed where it is read.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from einfuse.codegen.plan import Const, Coordinate, Dot, Load, Map, Param, Reduce, Size, Store, Value
from einfuse.codegen.scan.plan import Op, Prefix, Relabel, ScanPlan, Solve, reads
from einfuse.ir.rewrite import fresh

ELEMENTS = {"f64": "double", "f32": "float", "bf16": "bf16", "f16": "f16", "i64": "int64_t", "i32": "int32_t", "i16": "int16_t",
            "i8": "int8_t", "u8": "uint8_t", "bool": "bool"}  # fmt: skip
FORMS = {
    "+": "({0} + {1})",
    "-": "({0} - {1})",
    "*": "({0} * {1})",
    "/": "((T){0} / (T){1})",
    "//": "floor_div({0}, {1})",
    "%": "floor_mod({0}, {1})",
    "^": "std::pow((T){0}, (T){1})",
    "neg": "(-{0})",
    "abs": "std::abs({0})",
    "max": "std::max({c}{0}, {c}{1})",
    "min": "std::min({c}{0}, {c}{1})",
    "sign": "sign({0})",
    "exp": "fast_exp((T){0})",
    "exp2": "fast_exp((T){0} * (T)0.693147180559945309)",
    "log": "std::log((T){0})",
    "log2": "std::log2((T){0})",
    "log1p": "std::log1p((T){0})",
    "sqrt": "std::sqrt((T){0})",
    "rsqrt": "(1 / std::sqrt((T){0}))",
    "tanh": "std::tanh((T){0})",
    "sigmoid": "sigmoid((T){0})",
    "softplus": "softplus((T){0})",
    "erf": "std::erf((T){0})",
    "sin": "std::sin((T){0})",
    "cos": "std::cos((T){0})",
    "floor": "((long)std::floor({0}))",
    "float": "((T){0})",
    "int": "((long){0})",
    "<": "({0} < {1})",
    "<=": "({0} <= {1})",
    ">": "({0} > {1})",
    ">=": "({0} >= {1})",
    "==": "({0} == {1})",
    "!=": "({0} != {1})",
    "and": "({0} & {1})",
    "or": "({0} | {1})",
    "not": "(!{0})",
    "select": "({0} ? {c}{1} : {c}{2})",
    "copy": "{0}",
    "stop": "{0}",
}
TYPES = {"float": "T", "int": "long", "bool": "bool"}


def emit(plan: ScanPlan) -> str:
    """The standalone text of the kernel."""
    return _Printer(plan).printed()


@dataclass(slots=True)
class _Printer:
    plan: ScanPlan
    lines: list[str] = field(default_factory=list)
    indent: int = 1
    ops: dict[str, Op] = field(default_factory=dict)  # values that are computed where they are read
    places: dict[str, str] = field(default_factory=dict)  # scalars and buffers by value
    buffers: list[tuple[str, int]] = field(default_factory=list)
    uses: Counter[str] = field(default_factory=Counter)
    matrices: set[str] = field(default_factory=set)  # what products, systems and states read
    turned: dict[str, str] = field(default_factory=dict)  # transposed copies
    taken: set[str] = field(default_factory=set)

    # -- the whole ---------------------------------------------------------------------------------------------------------------

    def printed(self) -> str:
        plan = self.plan
        every = (*plan.before, *plan.body, *plan.after)
        for op in every:
            self.uses.update(v.name for v in reads(op))
            if isinstance(op, Dot | Solve):
                self.matrices |= {v.name for v in reads(op)}
        relabelled = {op.out.name: op.arg.name for op in every if isinstance(op, Relabel)}
        for name in list(self.matrices):
            while name in relabelled:
                name = relabelled[name]
                self.matrices.add(name)
        for new, old in relabelled.items():
            self.uses[old] += max(self.uses[new] - 1, 0)
        self.matrices |= {s.update.name for s in plan.states}
        body = self.body()
        text = [f"// {plan.name}", "//", *(f"//   {x}".rstrip() for x in plan.equations.strip().splitlines())]
        text.append(f"using T = {'double' if plan.compute == 'f64' else 'float'};")
        text.append((Path(__file__).parent / "kernel.h").read_text())
        text += [
            'extern "C" int einfuse_kernel(void** ptrs, const int64_t* strides, const int64_t* sizes, const double* params, int threads) {'
        ]
        text += self.arguments()
        programs = [self.extent(b.size) for b in plan.ambient]
        programs += [] if plan.states else [f"(({self.extent(plan.size)} + {plan.step - 1}) / {plan.step})"]
        programs += [str(plan.parts)] if plan.parts > 1 else []
        points = " * ".join(programs) or "1"
        total = sum(size for _, size in self.buffers)
        text += [f"  const long points = {points};", "  if (points <= 0) return 0;", "  int failed = 0;"]
        text += ["#pragma omp parallel num_threads(std::max(1L, std::min((long)threads, points)))", "  {"]
        text += [
            f"    T* const arena = (T*)std::aligned_alloc(64, {total + 16} * sizeof(T));",
            "    if (!arena) {",
            "#pragma omp atomic write",
            "      failed = 1;",
            "    }",
        ]
        at = 0
        for name, size in self.buffers:
            text.append(f"    T* const {name} = arena + {at};")
            at += size
        text += [
            "#pragma omp for schedule(dynamic, 1)",
            "    for (long item = 0; item < points; ++item) {",
            "      if (!arena) continue;",
        ]
        return "\n".join([*text, *body, "    }", "    std::free(arena);", "  }", "  return failed;", "}"]) + "\n"

    def arguments(self) -> list[str]:
        """The order of `codegen.cpu`: tensors with their strides, then sizes, extents of the tensors and numbers."""
        out, axis, at = [], 0, len(self.plan.sizes)
        for n, t in enumerate(self.plan.tensors):
            element = f"{'' if t.out else 'const '}{ELEMENTS[t.storage]}*"
            out.append(f"  {element} const {_id(t.name)} = ({element})ptrs[{n}];")
            for a in range(t.axes):
                out.append(f"  const long {_id(t.name)}_s{a} = strides[{axis + a}], {_id(t.name)}_n{a} = sizes[{at + a}];")
            axis, at = axis + t.axes, at + t.axes
        out += [f"  const long size_{_id(n)} = sizes[{k}];" for k, n in enumerate(self.plan.sizes)]
        out += [f"  const {TYPES[d]} param_{_id(n)} = ({TYPES[d]})params[{k}];" for k, (n, d) in enumerate(self.plan.params)]
        return out

    def body(self) -> list[str]:
        plan = self.plan
        self.indent = 3
        rest, total = "item", self.extent(plan.size)
        self.line(f"const long blocks = ({total} + {plan.step - 1}) / {plan.step};")
        if plan.parts > 1:
            f = next(f for f in plan.features if f.rank == plan.shared)
            self.line(
                f"const long part = item % {plan.parts}, first = part * {f.block}, columns = std::min({f.block}L, {f.size}L - first);"
            )
            rest = f"(item / {plan.parts})"
        if not plan.states:
            self.line(f"const long block = {rest} % blocks;")
            rest = f"({rest} / blocks)"
        for b in reversed(plan.ambient):
            self.line(f"const long x_{_id(b.rank)} = {rest} % {self.extent(b.size)};")
            rest = f"({rest} / {self.extent(b.size)})"
        for op in plan.before:
            self.operation(op)
        for s in plan.states:
            self.places[s.value.name] = self.buffer(s.value)
            self.loops(s.value.dims, f"{self.element(s.value)} = {self.at(s.init, self.own(s.value.dims))};")
        if plan.states:
            self.line("for (long turn = 0; turn < blocks; ++turn) {")
            self.indent += 1
            self.line(f"const long block = {'blocks - 1 - turn' if plan.reverse else 'turn'};")
        self.line(f"const long lo = block * {plan.step}, n = std::min({plan.step}L, {total} - lo);")
        for op in plan.body:
            self.operation(op)
        for s in plan.states:
            if s.value.dims:
                self.line(
                    f"std::memcpy({self.places[s.value.name]}, {self.places[s.update.name]}, {self.volume(s.value)} * sizeof(T));"
                )
            else:
                self.line(f"{self.element(s.value)} = {self.at(s.update, {})};")
        if plan.states:
            self.indent -= 1
            self.line("}")
        for op in plan.after:
            self.operation(op)
        return self.lines

    def line(self, text: str) -> None:
        self.lines.append("  " * self.indent + text)

    # -- sizes and places --------------------------------------------------------------------------------------------------------

    def extent(self, size: int | str) -> str:
        return f"{size}L" if isinstance(size, int) else f"size_{_id(size)}"

    def width(self, rank: str) -> int:
        """How many coordinates a buffer has room for."""
        if rank in self.plan.moving:
            return self.plan.step
        return next(f.block for f in self.plan.features if f.rank == rank)

    def bound(self, rank: str) -> str:
        if rank == self.plan.shared and self.plan.parts > 1:
            return "columns"
        return "n" if rank in self.plan.moving else f"{self.width(rank)}"

    def strides(self, dims: tuple[str, ...]) -> dict[str, int]:
        out, step = {}, 1
        for n, r in enumerate(reversed(dims)):
            out[r] = step
            step *= _padded(self.width(r)) if n == 0 else self.width(r)
        return out

    def volume(self, v: Value) -> int:
        out = 1
        for n, r in enumerate(reversed(v.dims)):
            out *= _padded(self.width(r)) if n == 0 else self.width(r)
        return _padded(out)

    def fresh(self, name: str) -> str:
        return fresh(_id(name), self.taken)

    def buffer(self, v: Value, suffix: str = "") -> str:
        name = self.fresh(f"v_{v.name}{suffix}")
        self.buffers.append((name, self.volume(v)))
        return name

    def own(self, dims: tuple[str, ...]) -> dict[str, str]:
        return {r: f"x_{_id(r)}" for r in dims}

    def element(self, v: Value, index: dict[str, str] | None = None) -> str:
        index = index or self.own(v.dims)
        terms = [index[r] if s == 1 else f"{index[r]} * {s}" for r, s in self.strides(v.dims).items()]
        return f"{self.places[v.name]}[{' + '.join(reversed(terms)) or 0}]"

    # -- values where they are read ----------------------------------------------------------------------------------------------

    def at(self, v: Value, index: dict[str, str]) -> str:
        """The value at the point whose coordinates (in the block) are given as texts by rank."""
        if v.name in self.places:
            return self.element(v, index) if v.dims or self.places[v.name].startswith("v_") else self.places[v.name]
        op = self.ops[v.name]
        match op:
            case Const(value=value):
                return _number(value)
            case Coordinate(rank=rank):
                return self.coordinate(rank, index)
            case Relabel(arg=arg, moved=(old, new)):
                return self.at(arg, {**index, old: index[new]})
            case Load():
                return self.loaded(op, index)
            case Map(out=out, fn=fn, args=args):
                return FORMS[fn].format(*(self.at(a, index) for a in args), c=f"({TYPES[out.dtype]})")
        raise AssertionError(f"{v.name} is not there yet")

    def coordinate(self, rank: str, index: dict[str, str]) -> str:
        if rank in (self.plan.count, "<part>"):
            return "part" if rank == "<part>" else "block"
        if rank == self.plan.shared and self.plan.parts > 1:
            return f"(first + {index[rank]})"
        return f"(lo + {index[rank]})" if rank in self.plan.moving else index.get(rank, f"x_{_id(rank)}")

    def address(self, tensor: str, where: tuple[Value, ...], index: dict[str, str], clamp: tuple[int, ...]) -> str:
        terms = []
        for n, v in enumerate(where):
            at = self.at(v, index)
            terms.append(f"{f'inside({at}, {_id(tensor)}_n{n})' if n in clamp else at} * {_id(tensor)}_s{n}")
        return f"{_id(tensor)}[{' + '.join(terms) or 0}]"

    def loaded(self, op: Load, index: dict[str, str]) -> str:
        return f"({TYPES[op.out.dtype]})widen({self.address(op.tensor, op.index, index, op.clamp)})"

    # -- operations --------------------------------------------------------------------------------------------------------------

    def loops(self, dims: tuple[str, ...], statement: str) -> None:
        """The statement at every point of ``dims``, the last one innermost and vectorised."""
        for k, r in enumerate(dims):
            if k == len(dims) - 1:
                self.lines.append("#pragma omp simd")
            self.line(f"{'  ' * k}for (long x_{_id(r)} = 0; x_{_id(r)} < {self.bound(r)}; ++x_{_id(r)})")
        self.line(f"{'  ' * len(dims)}{statement}")

    def operation(self, op: Op) -> None:
        match op:
            case Store():
                self.store(op)
            case Const() | Coordinate() | Relabel():
                self.ops[op.out.name] = op
            case Size(out=out, name=name):
                self.places[out.name] = f"size_{_id(name)}"
            case Param(out=out, name=name):
                self.places[out.name] = f"param_{_id(name)}"
            case Load():
                self.load(op)
            case Map():
                self.map(op)
            case Reduce():
                self.reduce(op)
            case Dot():
                self.dot(op)
            case Solve():
                self.solve(op)
            case Prefix():
                self.prefix(op)

    def local(self, v: Value, text: str) -> None:
        name = self.fresh(f"c_{v.name}")
        self.line(f"const {TYPES[v.dtype]} {name} = {text};")
        self.places[v.name] = name

    def load(self, op: Load) -> None:
        self.ops[op.out.name] = op
        if not op.out.dims:
            self.local(op.out, self.loaded(op, {}))
        elif op.out.dtype == "float":
            text = self.loaded(op, self.own(op.out.dims))
            self.places[op.out.name] = self.buffer(op.out)
            statement = f"{self.element(op.out)} = {text};"
            last = op.index[-1]
            plain = isinstance(self.ops.get(last.name), Coordinate) and last.dims == op.out.dims[-1:]
            if not plain:
                self.loops(op.out.dims, statement)
                return
            stride = f"{_id(op.tensor)}_s{len(op.index) - 1}"
            self.line(f"if ({stride} == 1)")  # rows that lie together are copied as vectors
            self.indent += 1
            self.loops(op.out.dims, statement.replace(f" * {stride}", ""))
            self.indent -= 1
            self.line("else")
            self.indent += 1
            self.loops(op.out.dims, statement)
            self.indent -= 1

    def map(self, op: Map) -> None:
        v = op.out
        self.ops[v.name] = op
        state = any(s.update.name == v.name for s in self.plan.states)
        if not v.dims:
            if not state or v.dtype != "float":
                self.local(v, self.at(v, {}))
            return
        cheap = v.dtype != "float" or (op.fn == "select" and all(not a.dims and a.name in self.ops for a in op.args[1:]))
        if (v.name in self.matrices) or (self.uses[v.name] > 1 and not cheap):
            self.keep(v)

    def keep(self, v: Value) -> None:
        """The value in a buffer."""
        text = self.at(v, self.own(v.dims))
        self.places[v.name] = self.buffer(v)
        self.loops(v.dims, f"{self.element(v)} = {text};")

    def store(self, op: Store) -> None:
        dims = tuple(r for r in self.plan.order if r in {d for v in (*op.index, op.value) for d in v.dims})
        to = self.address(op.tensor, op.index, self.own(dims), ())
        partial = any(p.tensor == op.tensor and "part" in p.axes for p in self.plan.partial)
        if self.plan.parts > 1 and not partial and self.plan.shared not in dims:
            self.line("if (part == 0)")  # the same in all of them
        self.loops(dims, f"narrow({to}, {self.at(op.value, self.own(op.value.dims))});")

    def reduce(self, op: Reduce) -> None:
        v, rank = op.out, op.rank
        start = {"sum": "(T)0", "prod": "(T)1", "max": "-(T)INFINITY", "min": "(T)INFINITY", "any": "false"}[op.fn]
        step = {
            "sum": "{0} + {1}",
            "prod": "{0} * {1}",
            "max": "std::max({0}, {1})",
            "min": "std::min({0}, {1})",
            "any": "{0} | {1}",
        }[op.fn]
        text = self.at(op.arg, self.own(op.arg.dims))
        self.places[v.name] = self.buffer(v) if v.dims else ""
        if op.arg.dims[-1] != rank and v.dims:
            self.loops(v.dims, f"{self.element(v)} = {start};")
            order = (*(d for d in op.arg.dims if d == rank or d in v.dims),)
            self.loops(order, f"{self.element(v)} = {step.format(self.element(v), text)};")
            return
        total = self.fresh(f"c_{v.name}_sum")
        for k, r in enumerate(v.dims):
            self.line(f"{'  ' * k}for (long x_{_id(r)} = 0; x_{_id(r)} < {self.bound(r)}; ++x_{_id(r)}) {{")
        pad = "  " * len(v.dims)
        kind = "double" if op.fn == "sum" and not v.dims else TYPES[v.dtype]  # a sum of a whole block is cheap to keep exact
        self.line(f"{pad}{kind} {total} = {start};")
        if op.fn == "sum":
            self.lines.append(f"#pragma omp simd reduction(+ : {total})")
        self.line(
            f"{pad}for (long x_{_id(rank)} = 0; x_{_id(rank)} < {self.bound(rank)}; ++x_{_id(rank)}) {total} = {step.format(total, text)};"
        )
        if v.dims:
            self.line(f"{pad}{self.element(v)} = {total};")
            self.line("}" * len(v.dims))
        else:
            self.local(v, f"({TYPES[v.dtype]}){total}")

    def prefix(self, op: Prefix) -> None:
        v, x = op.out, f"x_{_id(op.rank)}"
        text = self.at(op.arg, {**self.own(v.dims), **({op.rank: f"{x}_before"} if op.exclusive else {})})
        self.places[v.name] = self.buffer(v)
        before = self.element(v, {**self.own(v.dims), op.rank: f"{x}_before"})
        rest = tuple(d for d in v.dims if d != op.rank)
        self.line(f"for (long turn = 0; turn < {self.bound(op.rank)}; ++turn) {{")
        self.indent += 1
        self.line(f"const long {x} = {f'{self.bound(op.rank)} - 1 - turn' if op.reverse else 'turn'};")
        self.line(f"const long {x}_before = {x} {'+' if op.reverse else '-'} 1;")
        first = "0" if op.exclusive else text
        self.line("if (turn == 0) {")
        self.loops(rest, f"  {self.element(v)} = {first};")
        self.line("} else {")
        self.loops(rest, f"  {self.element(v)} = {before} + {text};")
        self.line("}")
        self.indent -= 1
        self.line("}")

    def matrix(self, v: Value) -> tuple[Value, str]:
        """The buffer that holds a matrix, through its other names, with its value."""
        name = v.name
        while name not in self.places:
            op = self.ops[name]
            assert isinstance(op, Relabel), "operands of products are kept"
            name = op.arg.name
        return v, self.places[name]

    def dot(self, op: Dot) -> None:
        v, rank = op.out, op.rank
        x, y = v.dims
        a, b = (op.a, op.b) if x in op.a.dims else (op.b, op.a)
        _, left = self.matrix(a)
        _, right = self.matrix(b)
        along = self.strides(a.dims)
        rows = self.strides(b.dims)
        if b.dims[-1] != y:  # rows of b must lie along y
            key = f"{right}/{rank}"
            if key not in self.turned:
                other = Value(f"{b.name}_turned", (rank, y), "float")
                self.turned[key] = self.buffer(other)
                self.line(
                    f"transpose({self.bound(y)}, {self.bound(rank)}, {right}, {rows[y]}, {self.turned[key]}, {_padded(self.width(y))});"
                )
            right, step = self.turned[key], _padded(self.width(y))
        else:
            step = rows[rank]
        self.places[v.name] = self.buffer(v)
        shape = f"{self.bound(x)}, {self.bound(y)}, {self.bound(rank)}"
        self.line(
            f"multiply({shape}, {left}, {along[x]}, {along[rank]}, {right}, {step}, {self.places[v.name]}, {self.strides(v.dims)[x]});"
        )

    def solve(self, op: Solve) -> None:
        v = op.out
        _, m = self.matrix(op.matrix)
        _, known = self.matrix(op.known)
        self.places[v.name] = self.buffer(v)
        rows = self.strides(v.dims)[self.plan.rank]
        if len(v.dims) == 1:
            width, rows = "1", 1
        else:
            assert v.dims[0] == self.plan.rank, "the points are the rows"
            width = str(rows)
        m_row = self.strides(op.matrix.dims)[self.plan.rank]
        self.line(f"solve({str(op.transposed).lower()}, n, {width}, {m}, {m_row}, {known}, {self.places[v.name]}, {rows});")


def _padded(n: int) -> int:
    return -(-n // 16) * 16


def _id(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _number(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value}L"
    if not math.isfinite(value):
        return f"({'-' if value < 0 else ''}(T)INFINITY)"
    return f"(T){value!r}" if value >= 0 else f"((T){value!r})"
