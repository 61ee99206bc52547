"""`emit`: a plan as the text of a Python module that needs only torch and Triton."""

from __future__ import annotations

import functools
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING

from einfuse.codegen.plan import Block, KernelPlan, finished
from einfuse.codegen.targets import TARGETS
from einfuse.codegen.triton.helpers import sources
from einfuse.codegen.triton.kernel import Argument, Kernel, Printed
from einfuse.codegen.triton.options import Options, fewer_warps, launch_options
from einfuse.codegen.triton.points import BUSY, MOST, points
from einfuse.codegen.triton.simplify import PASSES
from einfuse.codegen.triton.slices import sliced

if TYPE_CHECKING:
    from jinja2 import Template


def emit(plan: KernelPlan, options: Options = Options()) -> str:  # noqa: B008  # an immutable default
    """The module's text: its equations, the kernel, and ``launch(tensors, params, sizes, **options)``."""
    whole = sliced(plan)
    plan = finished(whole, PASSES)
    kernel = Kernel(plan, replace(options, descriptors=False)).printed()
    wanted = TARGETS[options.target].copies if options.descriptors is None else options.descriptors
    fast = Kernel(plan, replace(options, descriptors=True)).printed() if wanted else kernel
    described = fast if fast.described else None
    chosen = launch_options(whole, options.target, options.precision)
    if options.num_warps is not None:
        chosen["num_warps"] = options.num_warps
    if options.num_stages is not None:
        chosen["num_stages"] = options.num_stages
    return _module().render(
        name=kernel.name,
        equations=plan.equations.strip(),
        helpers=sources(set(kernel.helpers | fast.helpers), plan.compute),
        described=described,
        described_parameters=_parameters(fast),
        described_passed=_passed(fast.arguments, 12),
        parameters=_parameters(kernel),
        unspecialised=", ".join(f'"{a.name}"' for a in kernel.arguments if not a.specialised),
        lines=kernel.lines,
        busy=BUSY,
        each=_each(whole),
        programs=_programs(whole),
        over=_over(whole),
        passed=_passed(kernel.arguments),
        warps=chosen["num_warps"],
        fewer=None if options.num_warps is not None else fewer_warps(whole, options.target, chosen["num_warps"]),
        stages=chosen["num_stages"],
    )


@functools.cache
def _module() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # here: no other back end needs them

    templates = Environment(
        loader=PackageLoader("einfuse.codegen.triton", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template("module.py.j2")


def _filled(items: list[str], indent: str) -> str:
    """Items separated by commas, as many a line as fit."""
    unbroken = [i.replace(" ", "\0") + "," for i in items]
    wrapped = textwrap.wrap(" ".join(unbroken), 120, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    return "\n".join(wrapped).replace("\0", " ")


def _parameters(kernel: Printed) -> str:
    return _filled([a.name + (": tl.constexpr" if a.constexpr else "") for a in kernel.arguments], "    ")


def _passed(arguments: tuple[Argument, ...], indent: int = 8) -> str:
    given = [f"{a.name}={a.passed}" if a.constexpr else a.passed for a in arguments if a.passed]
    return _filled(given, " " * indent)


def _extent(size: int | str) -> str:
    return str(size) if isinstance(size, int) else f'sizes["{size}"]'


def _programs(plan: KernelPlan) -> str:
    shared = points(plan)
    factors = [_extent(b.size) for b in (plan.ambient if shared is None else shared.fixed)]
    if plan.tile:
        factors.append(f"triton.cdiv({_extent(plan.tile.size)}, {plan.tile.block})")
    if shared is not None:
        factors.append(f"triton.cdiv({_points(shared.run)}, each)")
    return " * ".join(factors) or "1"


def _each(plan: KernelPlan) -> str | None:
    """How many points a program takes, where it takes several."""
    return None if points(plan) is None else f"max(1, min({MOST}, {_points(plan.ambient)} // BUSY))"


def _points(blocks: tuple[Block, ...]) -> str:
    return " * ".join(_extent(b.size) for b in blocks)


def _over(plan: KernelPlan) -> str:
    ranks = ", ".join(b.rank for b in plan.ambient)
    shared = points(plan)
    if shared is not None:
        own, run = (", ".join(b.rank for b in blocks) for blocks in (shared.fixed, shared.run))
        return f"run of points of {run}" + (f" and point of {own}" if own else "")
    tile = f"tile of {plan.tile.block} of {plan.tile.rank}" if plan.tile else ""
    return " and ".join(p for p in (f"point of {ranks}" if ranks else "", tile) if p) or "launch"
