"""A kernel as an operator of torch, in one library: `text` adds what torch calls to the kernel's own, by torch's stable interface.

    einfuse_spec::windowed(Tensor q, Tensor k, Tensor v, *, int window=256) -> Tensor      int einfuse_kernel(ptrs, strides, sizes, params, ..)

A process that has torch loads the library, ``torch.ops.load_library``, and with it graphs that call the operator; nothing of einfuse is
needed there. What a call of einfuse checks of tensors (axes, dtypes, sizes) is checked here, with the same names in the messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from einfuse.codegen.cpu.names import identifier
from einfuse.codegen.plan import KernelPlan, Storage, table_ranks
from einfuse.ir import Cascade, Expr, Tensor
from einfuse.ir.expr import sizes as made_of
from einfuse.ir.text import show_expr

NAMESPACE = "einfuse_spec"
_SCALAR: dict[Storage, str] = {
    "f64": "Double",
    "f32": "Float",
    "bf16": "BFloat16",
    "f16": "Half",
    "e4m3": "Float8_e4m3fn",
    "e5m2": "Float8_e5m2",
    "i64": "Long",
    "i32": "Int",
    "i16": "Short",
    "i8": "Char",
    "u8": "Byte",
    "bool": "Bool",
}
_NUMBER = {"int": ("int", "int64_t"), "float": ("float", "double"), "bool": ("bool", "bool")}
_OPS = {
    "+": "{} + {}",
    "-": "{} - {}",
    "*": "{} * {}",
    "//": "floored({}, {})",
    "%": "left({}, {})",
    "max": "std::max({}, {})",
    "min": "std::min({}, {})",
}

_INCLUDES = """#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <algorithm>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>
"""
_HELPERS = """
namespace einfuse_operator {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

long floored(long a, long b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }
long up(long a, long b) { return (a + b - 1) / b; }
long left(long a, long b) { return a - floored(a, b) * b; }
std::string shown(const Tensor& x) {
  std::string out = "[";
  for (int64_t n = 0; n < x.dim(); ++n) out += (n ? ", " : "") + std::to_string(x.size(n));
  return out + "]";
}
[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error(std::string(NAME) + ": " + why); }
void check(const Tensor& x, const char* name, ScalarType type, const char* dtype, int64_t axes) {
  if (!x.is_cpu()) refuse(std::string(name) + " must be on the CPU");
  if (x.scalar_type() != type) refuse(std::string(name) + " must be of " + dtype + ", for which this operator was built");
  if (x.dim() != axes) refuse(std::string(name) + " has " + std::to_string(axes) + " axes, found the shape " + shown(x));
}
void same(long found, long wanted, const char* what) {
  if (found != wanted) refuse(std::string(what) + " = " + std::to_string(wanted) + ", found " + std::to_string(found));
}
long divisor(long whole, long found, const char* what) {
  if (whole == 0 && found == 0) return 1;
  if (found == 0 || whole % found)
    refuse(std::string(what) + ": " + std::to_string(whole) + " must be a multiple of it, found " + std::to_string(found));
  return whole / found;
}
"""


@dataclass(frozen=True, slots=True)
class Out:
    """An output: its shape in sizes, its storage, and whether what is not written is 0."""

    name: str
    shape: tuple[int | str, ...]
    storage: Storage
    cleared: bool


@dataclass(slots=True)
class Printer:
    """Prints the operator of a cascade that one kernel computes."""

    name: str
    cascade: Cascade
    plan: KernelPlan
    storage: Mapping[str, Storage]
    static: Mapping[str, int]
    outs: Sequence[Out]
    lines: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)

    @property
    def schema(self) -> str:
        """As torch reads it."""
        given = [f"Tensor {t.name}" for t in self.tensors]
        numbers = [f"{_NUMBER[t.dtype][0]} {t.name}{_default(t)}" for t in self.numbers]
        returned = ", ".join("Tensor" for _ in self.outs)
        returned = f"({returned})" if len(self.outs) > 1 else returned
        return f"{self.name}({', '.join([*given, *(['*', *numbers] if numbers else [])])}) -> {returned}"

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in self.cascade.inputs if not t.param]

    @property
    def numbers(self) -> list[Tensor]:
        return [t for t in self.cascade.inputs if t.param]

    def text(self, kernel: str) -> str:
        """The text of the library, from that of the kernel. Torch's headers come before our names."""
        self.sizes()
        self.made()
        self.launch()
        several = len(self.outs) > 1
        returned = f"std::tuple<{', '.join('Tensor' for _ in self.outs)}>" if several else "Tensor"
        arguments = [f"const Tensor& {_of(t.name)}" for t in self.tensors]
        arguments += [f"{_NUMBER[t.dtype][1]} {_of(t.name)}" for t in self.numbers]
        outs = ", ".join(_of(x.name) for x in self.outs)
        body = "\n".join(f"  {x}" for x in self.lines)
        return (
            f'{_INCLUDES}{kernel}\n#define NAME "{self.name}"\n{_HELPERS}\n'
            f"{returned} run({', '.join(arguments)}) {{\n{body}\n"
            f"  return {f'std::make_tuple({outs})' if several else outs};\n}}\n}}  // namespace einfuse_operator\n\n"
            f"STABLE_TORCH_LIBRARY_FRAGMENT({NAMESPACE}, m) {{ m.def({_quoted(self.schema)}); }}\n"
            f"STABLE_TORCH_LIBRARY_IMPL({NAMESPACE}, CPU, m) {{ m.impl(NAME, TORCH_BOX(&einfuse_operator::run)); }}\n"
        )

    def sizes(self) -> None:
        """As `einfuse.runtime.binding.sizes`: names first, then divisors, then ranks that are made of them, then what is left."""
        later: list[tuple[Tensor, int, Expr]] = []
        for t in self.tensors:
            axes, _ = t.given
            storage = self.storage[t.name]
            self.lines.append(f'check({_of(t.name)}, "{t.name}", ScalarType::{_SCALAR[storage]}, "{storage}", {len(axes)});')
            for n, axis in enumerate(axes):
                if axis.op == "size" and axis.name not in self.known:
                    self.bind(axis.name, f"{_of(t.name)}.size({n})")
                elif axis.op == "size":
                    self.expect(t, n, axis)
                else:
                    later.append((t, n, axis))
        extents = {r.size for r in self.cascade.ranks if r.extent is not None} - self.known.keys()
        for x in [x for x in later if not made_of(x[2]) & extents]:
            self.derived(*x)
        for r in self.cascade.ranks:
            if isinstance(r.size, str) and r.extent is not None and r.size not in self.known:
                self.bind(r.size, self.expression(r.extent))
        for x in [x for x in later if made_of(x[2]) & extents]:
            self.derived(*x)
        for name, size in self.static.items():
            self.lines.append(f'same({self.known[name]}, {size}, "this operator was built for {name}");')

    def derived(self, t: Tensor, n: int, axis: Expr) -> None:
        free = axis.args[1] if axis.op == "//" else None
        if free is not None and free.op == "size" and free.name not in self.known:
            whole = self.expression(axis.args[0])
            self.bind(free.name, f"divisor({whole}, {_of(t.name)}.size({n}), {_quoted(self.where(t, n, axis))})")
        else:
            self.expect(t, n, axis)

    def where(self, t: Tensor, n: int, axis: Expr) -> str:
        return f"axis {n} of {t.name} is {show_expr(axis)}"

    def bind(self, name: str, text: str) -> None:
        self.known[name] = f"size_{identifier(name)}"
        self.lines.append(f"const long {self.known[name]} = {text};")

    def expect(self, t: Tensor, n: int, axis: Expr) -> None:
        self.lines.append(f"same({_of(t.name)}.size({n}), {self.expression(axis)}, {_quoted(self.where(t, n, axis))});")

    def expression(self, e: Expr) -> str:
        if e.op == "const":
            return f"{e.value}L"
        if e.op == "size":
            return self.known[e.name]
        return f"({_OPS[e.op].format(*map(self.expression, e.args))})"

    def made(self) -> None:
        """The outputs."""
        first = _of(self.tensors[0].name)
        for x in self.outs:
            shape = ", ".join(map(self.size, x.shape))
            make = "new_zeros" if x.cleared else "new_empty"
            self.lines.append(
                f"Tensor {_of(x.name)} = torch::stable::{make}({first}, {{{shape}}}, ScalarType::{_SCALAR[x.storage]});"
            )

    def launch(self) -> None:
        """What the kernel takes: pointers, strides, sizes and shapes, numbers."""
        names = [t.name for t in self.plan.tensors]
        outs = {x.name for x in self.outs}
        pointers = ", ".join(
            f"{_of(n)}.mutable_data_ptr()" if n in outs else f"(void*){_of(n)}.const_data_ptr()" for n in names
        )
        axes = [(t.name, n) for t in self.plan.tensors for n in range(t.axes)]
        strides = ", ".join(f"{_of(t)}.stride({n})" for t, n in axes)
        counts = ", ".join([*(self.size(n) for n in self.plan.sizes), *(f"{_of(t)}.size({n})" for t, n in axes)])
        numbers = ", ".join(f"(double){_of(n)}" for n, _ in self.plan.params)
        tables = [self.table(rank) for rank in table_ranks(self.plan)]
        more = "".join(f", {t}_count.data(), {t}_block.data()" for t in tables)
        counts += "".join(f", {t}_most" for t in tables)
        self.lines += [
            f"void* words[] = {{{pointers}{more}}};",
            f"const int64_t strides[] = {{{strides}, 0}}, counts[] = {{{counts}, 0}};",
            f"const double numbers[] = {{{numbers or '0'}}};",
            "if (einfuse_kernel(words, strides, counts, numbers, torch::stable::get_num_threads()))",
            '  refuse("not enough memory for its scratch buffers");',
        ]

    def table(self, rank: str) -> str:
        """The live tiles of a fold whose mask reads tables: every one as partly live, which is right for any."""
        fold = next(f for f in self.plan.folds if f.rank == rank and f.tabulated)
        ambient = {b.rank: b.size for b in self.plan.ambient}
        tile, name = self.plan.tile, f"tiles_{identifier(rank)}"
        rows = [self.size(ambient[r]) for r in fold.table_ranks]
        rows += [f"up({self.size(tile.size)}, {tile.block})"] if tile is not None else []
        self.lines += [
            f"const long {name}_rows = {' * '.join(rows) or '1'}, {name}_most = up({self.size(fold.size)}, {fold.step});",
            f"std::vector<int32_t> {name}_count(2 * {name}_rows), {name}_block(2 * {name}_rows * {name}_most);",
            f"for (long r = 0; r < {name}_rows; ++r) {{",
            f"  {name}_count[2 * r + 1] = {name}_most;",
            f"  for (long n = 0; n < {name}_most; ++n) {name}_block[(2 * r + 1) * {name}_most + n] = n;",
            "}",
        ]
        return name

    def size(self, size: int | str) -> str:
        return f"{size}L" if isinstance(size, int) else self.known[size]


def _of(name: str) -> str:
    return f"in_{identifier(name)}"


def _default(t: Tensor) -> str:
    if t.default is None:
        return ""
    return f"={str(t.default).lower() if isinstance(t.default, bool) else t.default}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
