"""The forward kernels of a cascade as text, and what they cost: without a call, a device or torch. `Attention.source` gives those of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from einfuse.codegen import KernelPlan, Storage, hold, lower
from einfuse.codegen.cost import Cost, cost
from einfuse.codegen.plan import plain, table_ranks
from einfuse.codegen.scan import ScanPlan, ladder, team
from einfuse.codegen.scan import lower as lower_scan
from einfuse.ir import Cascade, EinfuseError, Scan, SpecError
from einfuse.ir.passes.kernels import kernels
from einfuse.runtime import derived
from einfuse.runtime.picture import picture
from einfuse.runtime.sizes import Shape, evaluate, example_sizes

TILE = 64
"""Queries and keys of a tile, and the width of a feature."""
LAUNCHED = Shape(1, 2, 128, 128, (TILE, TILE), 1)
TARGET: Literal["sm_90"] = "sm_90"
"""The GPU for which the kernels of a scan are cut."""


def plans(cascade: Cascade, dtype: Storage = "f32") -> list[KernelPlan | ScanPlan]:
    """The plan of every forward kernel, for tensors with features in ``dtype``. Raises SpecError where no kernel computes the cascade."""
    out: list[KernelPlan | ScanPlan] = []
    for kernel in kernels(cascade):
        made = derived.scheduled(kernel, TILE, TILE)
        kinds: Mapping[str, Storage] = {"float": "f32", "int": "i64", "bool": "bool"}
        narrow = {*kernel.with_features, *made.outs}
        storage = {t.name: dtype if t.name in narrow and t.dtype == "float" else kinds[t.dtype] for t in made.inputs}
        storage |= dict.fromkeys(made.outs, dtype)
        widths = {r.size: TILE for r in made.ranks if r.kind == "feature" and isinstance(r.size, str)}
        scan = isinstance(kernel, Scan)
        out.append(lower_scan(made, storage, widths) if scan else lower(made, storage, widths))
    return out


def text(cascade: Cascade, backend: str) -> str:
    """The kernels one after the other, as the back end prints them. Raises EinfuseError for a back end that prints none."""
    if backend not in PRINTERS:
        raise EinfuseError(f"the back ends that print text are {', '.join(PRINTERS)}, not {backend}")
    one, scan = PRINTERS[backend]
    return "\n\n".join(x for p in plans(cascade) for x in (scan(p) if isinstance(p, ScanPlan) else [one(p)]))


def launched(cascade: Cascade) -> str:
    """The Triton kernels, each with a launch on empty tensors: what a tool needs that compiles what it sees launched (Compiler Explorer).

    Raises SpecError of a scan, whose kernels take several launches that share tensors.
    """
    out = []
    for kernel, plan in zip(kernels(cascade), plans(cascade), strict=True):
        if isinstance(plan, ScanPlan):
            raise SpecError(f"a scan is launched in several steps, {plan.name} as well", cascade.loc)
        sizes = example_sizes(kernel, LAUNCHED)
        kinds = {"float": "float32", "int": "int64", "bool": "bool"}
        dtypes = {t.name: kinds[t.dtype] for t in kernel.inputs}
        shapes = _shapes(kernel, sizes)
        for rank in table_ranks(plan):  # which a call makes of its mask
            shapes |= {f"{rank}_count": (1, 2), f"{rank}_block": (1, 2, 2)}
            dtypes |= {f"{rank}_count": "int32", f"{rank}_block": "int32"}
        made = [f'"{n}": torch.empty({x}, dtype=torch.{dtypes.get(n, "float32")})' for n, x in shapes.items()]
        numbers = {t.name: 1 if t.default is None else t.default for t in kernel.inputs if t.param}
        out.append(f"{_triton(plan)}\n\ntensors = {{{', '.join(made)}}}\nlaunch(tensors, {numbers}, {sizes})\n")
    return "\n\n".join(out)


def _shapes(kernel: Cascade, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a kernel reads or writes."""
    found = {t.name: tuple(int(evaluate(a, sizes)) for a in t.axes) for t in kernel.inputs if not t.param}
    ranks = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in kernel.ranks}
    written = {x.target: x.ranks for x in kernel.einsums}
    return found | {o: tuple(ranks[r] for r in (*kernel.over, *written[o])) for o in kernel.outs if o in written}


def _triton(plan: KernelPlan) -> str:
    from einfuse.codegen import triton

    return triton.emit(hold(plan, {}))


def _cpu(plan: KernelPlan) -> str:
    from einfuse.codegen import cpu

    return cpu.emit(plain(plan))


def _torch(plan: KernelPlan) -> str:
    from einfuse.codegen import torch

    return torch.emit(plan)


def _torch_scan(plan: ScanPlan) -> list[str]:
    from einfuse.codegen.scan import emit_torch

    return [emit_torch.emit(plan)]


PRINTERS: Mapping[str, tuple[Callable[[KernelPlan], str], Callable[[ScanPlan], list[str]]]] = {
    "triton": (_triton, lambda plan: [p.source for p in ladder.kernels(plan, TARGET)]),
    "cpu": (_cpu, lambda plan: [p.source for p in team.kernels(plan, 1)]),
    "torch": (_torch, _torch_scan),
}
"""How each back end prints a kernel, and a scan, which may be several. Nothing is imported until it prints."""


@dataclass(frozen=True, slots=True)
class Costed:
    """A forward kernel and what it costs at some sizes; None of a scan, whose cost grows with the length alone."""

    name: str
    cost: Cost | None


def costs(cascade: Cascade, shape: Shape, dtype: Storage = "bf16") -> list[Costed]:
    """The cost of every forward kernel, of the tiles that its mask leaves. Raises SpecError where no kernel computes the cascade."""
    out = []
    for kernel, plan in zip(kernels(cascade), plans(cascade, dtype), strict=True):
        if isinstance(plan, ScanPlan):
            out.append(Costed(plan.name, None))
            continue
        sizes = example_sizes(kernel, shape)
        drawn = picture(kernel, shape.queries, (TILE, TILE), shape.keys)
        live = {} if drawn is None else {s.rank: drawn.tiles.live_fraction for s in plan.folds}
        out.append(Costed(plan.name, cost(plan, sizes, _shapes(kernel, sizes), live)))
    return out
