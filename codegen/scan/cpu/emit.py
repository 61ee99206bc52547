"""`emit`: a scan's plan as one C++ function. Threads share the points of the ambient ranks and the parts of a shared rank; each runs the
blocks in order, or one of them where they do not depend on each other.

Blocks of floats that products, systems or several readers need lie in a buffer of the thread, with rows padded to whole vectors;
everything else is computed where it is read.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from einfuse.codegen.cpu.access import ELEMENTS
from einfuse.codegen.cpu.names import HEADERS
from einfuse.codegen.plan import FLOAT8, Const, Coordinate, Dot, Load, Map
from einfuse.codegen.plan.scan import Relabel, ScanPlan, Solve, reads
from einfuse.codegen.scan.cpu.body import Body, own
from einfuse.codegen.scan.cpu.forms import TYPES, identifier
from einfuse.codegen.scan.cpu.layout import Layout, extent
from einfuse.codegen.scan.cpu.ops import print_region

_SIGNATURE = "int einfuse_kernel(void** ptrs, const int64_t* strides, const int64_t* sizes, const double* params, int threads)"


def emit(plan: ScanPlan) -> str:
    """The standalone text of the kernel."""
    body = Body(plan, Layout(plan), _kept(plan))
    _item(body)
    text = [f"// {plan.name}", "//", *(f"//   {x}".rstrip() for x in plan.equations.strip().splitlines())]
    text.append(f"using T = {'double' if plan.compute == 'f64' else 'float'};")
    text += [(Path(__file__).parent / "kernel.h").read_text(), HEADERS["hash"].read_text()]
    used = sorted({t.storage for t in plan.tensors if t.storage in FLOAT8})
    if used:
        widened = [f"static inline float widen({s} x) {{ return float_of(x); }}" for s in used]
        text += [HEADERS["float8"].read_text(), *widened]
    text += [f'extern "C" {_SIGNATURE} {{', *_arguments(plan)]
    text += [f"  const long points = {_points(plan)};", "  if (points <= 0) return 0;", "  int failed = 0;"]
    text += ["#pragma omp parallel num_threads(std::max(1L, std::min((long)threads, points)))", "  {"]
    text += _arena(body.buffers)
    text += [
        "#pragma omp for schedule(dynamic, 1)",
        "    for (long item = 0; item < points; ++item) {",
        "      if (!arena) continue;",
    ]
    return "\n".join([*text, *body.lines, "    }", "    std::free(arena);", "  }", "  return failed;", "}"]) + "\n"


def _kept(plan: ScanPlan) -> frozenset[str]:
    """The values that lie in buffers if they are blocks: what products, systems and states read, and what is read more than once and is
    not cheap to write out again."""
    every = (*plan.before, *plan.body, *plan.after)
    uses = Counter(v.name for op in every for v in reads(op))
    kept = {v.name for op in every if isinstance(op, Dot | Solve) for v in reads(op)}
    relabelled = {op.out.name: op.arg.name for op in every if isinstance(op, Relabel)}
    for name in list(kept):
        while name in relabelled:
            name = relabelled[name]
            kept.add(name)
    for new, old in relabelled.items():  # what reads the one reads the other
        uses[old] += max(uses[new] - 1, 0)
    kept |= {s.update.name for s in plan.states}
    written_out = {op.out.name for op in every if isinstance(op, Const | Coordinate | Relabel | Load | Map)}
    for op in every:
        if isinstance(op, Map) and uses[op.out.name] > 1:
            numbers = op.fn == "select" and all(not a.dims and a.name in written_out for a in op.args[1:])
            kept |= set() if numbers or op.out.dtype != "float" else {op.out.name}
    return frozenset(kept)


# -- what stands around a thread's work ------------------------------------------------------------------------------------------


def _arguments(plan: ScanPlan) -> list[str]:
    """The order of `codegen.cpu`: tensors with their strides, then sizes, extents of the tensors and numbers."""
    out, axis, at = [], 0, len(plan.sizes)
    for n, t in enumerate(plan.tensors):
        element, name = f"{'' if t.out else 'const '}{ELEMENTS[t.storage]}*", identifier(t.name)
        out.append(f"  {element} const {name} = ({element})ptrs[{n}];")
        for a in range(t.axes):
            out.append(f"  const long {name}_s{a} = strides[{axis + a}], {name}_n{a} = sizes[{at + a}];")
        axis, at = axis + t.axes, at + t.axes
    out += [f"  const long size_{identifier(n)} = sizes[{k}];" for k, n in enumerate(plan.sizes)]
    out += [f"  const {TYPES[d]} param_{identifier(n)} = ({TYPES[d]})params[{k}];" for k, (n, d) in enumerate(plan.params)]
    return out


def _points(plan: ScanPlan) -> str:
    """How many items of work there are."""
    programs = [extent(b.size) for b in plan.ambient]
    programs += [] if plan.states else [_blocks(plan)]
    programs += [str(plan.parts)] if plan.parts > 1 else []
    return " * ".join(programs) or "1"


def _arena(buffers: list[tuple[str, int]]) -> list[str]:
    """The memory of a thread, and its buffers in there."""
    out = [
        f"    T* const arena = (T*)std::aligned_alloc(64, {sum(size for _, size in buffers) + 16} * sizeof(T));",
        "    if (!arena) {",
        "#pragma omp atomic write",
        "      failed = 1;",
        "    }",
    ]
    at = 0
    for name, size in buffers:
        out.append(f"    T* const {name} = arena + {at};")
        at += size
    return out


# -- an item of work -------------------------------------------------------------------------------------------------------------


def _item(body: Body) -> None:
    """Where the item is, what is done once, the blocks, and what is done with the last states."""
    plan = body.plan
    _place(body)
    print_region(body, plan.before)
    for s in plan.states:
        body.places[s.value.name] = body.buffer(s.value)
        body.loops(s.value.dims, f"{body.element(s.value)} = {body.at(s.init, own(s.value.dims))};")
    if plan.states:
        body.line("for (long turn = 0; turn < blocks; ++turn) {")
        body.indent += 1
        body.line(f"const long block = {'blocks - 1 - turn' if plan.reverse else 'turn'};")
    body.line(f"const long lo = block * {plan.step}, n = std::min({plan.step}L, {extent(plan.size)} - lo);")
    print_region(body, plan.body)
    _carry(body)
    if plan.states:
        body.indent -= 1
        body.line("}")
    print_region(body, plan.after)


def _place(body: Body) -> None:
    """The coordinates of an item: its part, its block where blocks are items of their own, and its ambient point."""
    plan, rest = body.plan, "item"
    body.line(f"const long blocks = {_blocks(plan)[1:-1]};")
    if plan.parts > 1:
        f = next(f for f in plan.features if f.rank == plan.shared)
        columns = f"std::min({f.block}L, {f.size}L - first)"
        body.line(f"const long part = item % {plan.parts}, first = part * {f.block}, columns = {columns};")
        rest = f"(item / {plan.parts})"
    if not plan.states:
        body.line(f"const long block = {rest} % blocks;")
        rest = f"({rest} / blocks)"
    for b in reversed(plan.ambient):
        body.line(f"const long x_{identifier(b.rank)} = {rest} % {extent(b.size)};")
        rest = f"({rest} / {extent(b.size)})"


def _blocks(plan: ScanPlan) -> str:
    return f"(({extent(plan.size)} + {plan.step - 1}) / {plan.step})"


def _carry(body: Body) -> None:
    """Every state takes the value it has after the block."""
    for s in body.plan.states:
        if s.value.dims:
            size = body.layout.volume(s.value)
            body.line(f"std::memcpy({body.places[s.value.name]}, {body.places[s.update.name]}, {size} * sizeof(T));")
        else:
            body.line(f"{body.element(s.value)} = {body.at(s.update, {})};")
