"""`emit`: a scan's plan as a Triton module. Blocks are padded to powers of two.

One program for each point of the ambient ranks and share of the shared rank, which runs the blocks in order; for each block as well where
they do not depend on each other.
"""

from __future__ import annotations

from einfuse.codegen.plan import FLOAT8
from einfuse.codegen.plan.scan import ScanPlan
from einfuse.codegen.scan.triton.body import Body
from einfuse.codegen.scan.triton.layout import Layout
from einfuse.codegen.scan.triton.ops import print_region
from einfuse.codegen.triton.helpers import sources
from einfuse.codegen.triton.names import identifier


def emit(plan: ScanPlan, warps: int = 8) -> str:
    """The module's text: its equations, the kernel, and ``launch(tensors, params, sizes)``; ``warps`` are those of its launches."""
    body, kernel = Body(plan, Layout(plan)), identifier(plan.name)
    arguments, passed = _arguments(plan)
    programs, what = _programs(plan)
    _kernel(body)
    lines = "\n".join(body.lines)
    title = "\n".join([f"{plan.name}", "", *(f"    {x}".rstrip() for x in plan.equations.strip().splitlines())])
    helpers = "".join(f"\n\n{x}\n" for x in sources(body.helpers, plan.compute))
    return (
        f'"""{title}\n"""\n\nimport torch\nimport triton\nimport triton.language as tl\n\n'
        f"LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)\n{helpers}\n\n"
        f"@triton.jit\ndef {kernel}({', '.join(arguments)}):\n{lines}\n\n\n"
        f"def launch(tensors, params, sizes, num_warps={warps}, num_stages=1):\n"
        f'    """One program for each {", ".join(what) or "call"}."""\n'
        f"    programs = {' * '.join(programs) or '1'}\n"
        f"    return {kernel}[(programs,)]({', '.join(passed)}, num_warps=num_warps, num_stages=num_stages, "
        f"enable_fp_fusion=True)\n"
    )


# -- the launch ------------------------------------------------------------------------------------------------------------------


def _arguments(plan: ScanPlan) -> tuple[list[str], list[str]]:
    """The parameters of the kernel, and what is passed for each."""
    names, passed = [], []
    for t in plan.tensors:
        names.append(f"{identifier(t.name)}_ptr")
        passed.append(f"tensors[{t.name!r}]{'.view(torch.uint8)' if t.storage in FLOAT8 else ''}")
    for t in plan.tensors:
        for n in range(t.axes):
            names += [f"{identifier(t.name)}_s{n}", f"{identifier(t.name)}_n{n}"]
            passed += [f"tensors[{t.name!r}].stride({n})", f"tensors[{t.name!r}].shape[{n}]"]
    for name in plan.sizes:
        names.append(f"size_{identifier(name)}")
        passed.append(f"sizes[{name!r}]")
    for name, _ in plan.params:
        names.append(f"param_{identifier(name)}")
        passed.append(f"params[{name!r}]")
    return names, passed


def _programs(plan: ScanPlan) -> tuple[list[str], list[str]]:
    """The factors of the number of programs, and what there is a program for each of."""
    factors = [str(b.size) if isinstance(b.size, int) else f"sizes[{b.size!r}]" for b in plan.ambient]
    what = [b.rank for b in plan.ambient]
    if not plan.states:
        size = str(plan.size) if isinstance(plan.size, int) else f"sizes[{plan.size!r}]"
        factors.append(_blocks(plan, size))
        what.append(f"block of {plan.rank}")
    if plan.parts > 1:
        factors.append(str(plan.parts))
        what.append(f"share of {plan.shared}")
    return factors, what


def _blocks(plan: ScanPlan, size: str) -> str:
    return f"(({size} + {plan.step - 1}) // {plan.step})"


# -- the kernel ------------------------------------------------------------------------------------------------------------------


def _kernel(body: Body) -> None:
    """Where the program is, what it does once, its blocks, and what it does with the last states."""
    plan = body.plan
    _place(body)
    print_region(body, plan.before)
    for s in plan.states:
        name = body.define(s.value)
        body.line(f"{name} = {body.zeros(s.value.dims)} + {body.ref(s.init)}")
    if plan.states:
        body.line(f"blocks = {_blocks(plan, _extent(plan.size))[1:-1]}")
        body.line("for turn in range(0, blocks):")
        body.indent += 1
        body.line(f"block = {'blocks - 1 - turn' if plan.reverse else 'turn'}")
    for r in plan.moving:
        at, lanes = identifier(r), f"tl.arange(0, {body.layout.width(r)})"
        body.line(f"at_{at} = block * {plan.step} + {lanes}")
        body.line(f"ok_{at} = (at_{at} < {_extent(plan.size)}) & ({lanes} < {plan.step})")
    states = [body.names[s.value.name] for s in plan.states]
    print_region(body, plan.body)
    if plan.states:
        body.line(f"{', '.join(states)} = {', '.join(body.whole(s.update, s.value.dims) for s in plan.states)}")
        body.indent -= 1
    print_region(body, plan.after)


def _place(body: Body) -> None:
    """The coordinates of a program: its part, its block where blocks are programs of their own, its ambient point, and features."""
    plan = body.plan
    body.line("item = tl.program_id(0).to(tl.int64)")
    if plan.parts > 1:
        body.line(f"part = (item % {plan.parts}).to(tl.int32)")
        body.line(f"item = item // {plan.parts}")
    if not plan.states:
        body.line(f"blocks = {_blocks(plan, _extent(plan.size))[1:-1]}")
        body.line("block = (item % blocks).to(tl.int32)")
        body.line("item = item // blocks")
    for b in reversed(plan.ambient):
        body.line(f"at_{identifier(b.rank)} = item % {_extent(b.size)}")
        body.line(f"item = item // {_extent(b.size)}")
    for f in plan.features:
        width, at = body.layout.width(f.rank), identifier(f.rank)
        first = f"part * {f.block} + " if f.block != f.size else ""
        body.line(f"at_{at} = {first}tl.arange(0, {width})")
        within = f" & (tl.arange(0, {width}) < {f.block})" if width != f.block != f.size else ""
        body.line(f"ok_{at} = (at_{at} < {f.size}){within}")


def _extent(size: int | str) -> str:
    return str(size) if isinstance(size, int) else f"size_{identifier(size)}"
