"""`static`: what the kernels of a call are made of on a GPU that need not be there, and how long a model says that they take.

    the call, recorded  ->  launches  ->  machine code (in a process of its own)  ->  instructions per score, cycles, time

See `codegen.triton.machine_code` for what is counted and `codegen.triton.issue_model` for the model.
"""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from einfuse import _files as files
from einfuse.codegen import KernelPlan
from einfuse.codegen.scan import ScanPlan
from einfuse.codegen.targets import TARGETS, Rates, Target
from einfuse.codegen.triton import issue_model, statistics
from einfuse.codegen.triton.names import identifier
from einfuse.ir import EinfuseError, Scalar
from einfuse.runtime import binding, cache
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import TritonBackend
from einfuse.runtime.graph import Recorded
from einfuse.runtime.inside import launched
from einfuse.runtime.launch import tile_tables
from einfuse.runtime.trips import trips

MEASURED_BY = ("machine_code.py", "signature.py", "statistics.py")
"""The files that decide what is measured: results are kept until one of them changes."""


@dataclass(frozen=True, slots=True)
class LoopReport:
    """A loop with matrix products: ``label`` of its phase, instructions of a thread ``per_score`` and per iteration by kind, the busiest
    unit, cycles of a multiprocessor per iteration, and ``trips`` of a program on average (None where the text does not tell)."""

    label: str
    per_score: float
    counts: Mapping[str, int]
    matrix: float
    arithmetic: float
    bound: str
    cycles: float
    trips: float | None


@dataclass(frozen=True, slots=True)
class KernelReport:
    """A kernel of a call. ``resident`` programs fit on a multiprocessor; ``seconds`` by the model, None where loops are unknown."""

    name: str
    target: str
    tiling: tuple[int, ...]
    programs: int
    warps: int
    stages: int
    registers: int
    spills: int
    shared: int
    resident: int
    matrix: str
    serialised: bool
    warnings: tuple[str, ...]
    loops: tuple[LoopReport, ...]
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Job:
    """A launch as another process can repeat it: ``tensors`` by shape, strides and dtype."""

    kernel: str
    source: str
    tensors: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], str]]
    params: Mapping[str, Scalar]
    sizes: Mapping[str, int]
    options: Mapping[str, int]
    target: Target


def static(
    attention: Attention, call: Mapping[str, torch.Tensor | Scalar], backward: bool = False, target: Target = "sm_90"
) -> list[KernelReport]:
    """The kernels that a call with these arguments launches, in their order; with ``backward`` those of its training step.

    Tensors that no mask reads may be on the meta device. The call is taken to run on the GPU whose rates `TARGETS` has.
    Results are kept on disk. Raises EinfuseError with the compiler's own words where a kernel does not compile.
    """
    return reports(recorded(attention, call, backward, target), target)


def recorded(attention: Attention, call: Mapping[str, torch.Tensor | Scalar], backward: bool, target: Target) -> list[Recorded]:
    """The launches that `static` reports on."""
    gpu = TARGETS[target].rates
    backend = TritonBackend(target=target, processors=gpu.processors if gpu else None)
    tensors, numbers = binding.arguments(attention.cascade, (), call)
    return launched(attention, tensors, numbers, backward, backend)


def reports(launches: Sequence[Recorded], target: Target) -> list[KernelReport]:
    """What the compiler makes of launches, of as many calls as there are: one process compiles them all."""
    jobs = [job(x, target) for x in launches]
    return [_report(x, s, target) for x, s in zip(launches, measured(jobs), strict=True)]


def job(launch: Recorded, target: Target) -> Job:
    """A recorded launch, to be measured."""
    plan, given = launch.kernel.plan, launch.given
    tensors = dict(given.tensors) | _tables(launch)
    return Job(
        identifier(plan.name),
        launch.kernel.source,
        {n: (tuple(x.shape), tuple(x.stride()), str(x.dtype).removeprefix("torch.")) for n, x in tensors.items()},
        dict(given.numbers),
        dict(given.sizes),
        {} if isinstance(plan, KernelPlan) else dict(launch.kernel.options),  # type: ignore[union-attr]  # of a scan
        target,
    )


def measured(jobs: Sequence[Job]) -> list[statistics.Statistics]:
    """What the compiler makes of launches: those that were not measured before, in another process."""
    tool = cache.content(version("triton"), *(Path(statistics.__file__).with_name(n).read_text() for n in MEASURED_BY))
    keys = [cache.content(tool, json.dumps(asdict(j), sort_keys=True)) for j in jobs]
    known = {k for k in keys if files.read(cache.folder() / "static" / f"{k}.json") is not None}
    fresh = {k: j for k, j in zip(keys, jobs, strict=True) if k not in known}
    found = dict(zip(fresh, _run(list(fresh.values())), strict=True)) if fresh else {}
    texts = [cache.remembered("static", k, functools.partial(found.__getitem__, k)) for k in keys]
    return [_statistics(json.loads(x)) for x in texts]


def _statistics(x: dict[str, Any]) -> statistics.Statistics:
    loops = tuple(statistics.Iteration(it["counts"], tuple(map(tuple, it["wgmma"]))) for it in x.pop("loops"))
    return statistics.Statistics(**{**x, "warnings": tuple(x["warnings"])}, loops=loops)


def _run(jobs: list[Job]) -> list[str]:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    text = json.dumps([asdict(j) for j in jobs])
    command = [sys.executable, "-m", "einfuse.runtime.static"]
    done = subprocess.run(command, input=text, env=env, capture_output=True, check=False, text=True)
    if done.returncode:
        raise EinfuseError(f"a kernel does not compile:\n{done.stderr[-4000:]}")
    out: list[str] = json.loads(done.stdout.splitlines()[-1])
    return out


def _main() -> None:
    from einfuse.codegen.triton.build import module
    from einfuse.codegen.triton.signature import Signature

    out = []
    for x in json.load(sys.stdin):
        tensors = {
            n: torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device="meta")
            for n, (shape, strides, dtype) in x["tensors"].items()
        }
        made = module(x["kernel"], x["source"], cache.folder() / "triton")
        launch = Signature.of(made, x["kernel"], tensors, x["params"], x["sizes"], x["options"])
        assert launch is not None, f"{x['kernel']} has no programs"
        out.append(json.dumps(asdict(statistics.compiled(launch, x["target"]))))
    print(json.dumps(out))


# -- reports ---------------------------------------------------------------------------------------------------------------------


def _tables(launch: Recorded) -> dict[str, torch.Tensor]:
    """The lists of live tiles that a launch makes."""
    plan, kernel = launch.kernel.plan, launch.kernel
    if isinstance(plan, ScanPlan):
        return {}
    made: dict[str, torch.Tensor] = {}
    for step in (f for f in plan.folds if f.tabulated):
        made |= tile_tables(kernel.cascade, step, launch.given)  # type: ignore[union-attr]  # of no scan
    return made


def _report(launch: Recorded, found: statistics.Statistics, target: Target) -> KernelReport:
    plan = launch.kernel.plan
    gpu = TARGETS[target].rates
    held = issue_model.resident(found.registers, found.warps, found.shared, gpu) if gpu else 1
    walked = trips(plan, launch.given, _tables(launch)) if isinstance(plan, KernelPlan) else ()
    labels = walked if len(walked) == len(found.loops) else [("", None)] * len(found.loops)
    scores = _scores(plan) / (32 * found.warps)
    loops = []
    for loop, (label, count) in zip(found.loops, labels, strict=True):
        assert gpu is not None, "only NVIDIA's machine code has loops"
        work = issue_model.work(loop, found.warps, gpu)
        cycles = work.cycles(held, found.serialised)
        per = loop.instructions / scores if scores else math.nan
        loops.append(LoopReport(label, per, loop.counts, work.matrix, work.arithmetic, work.bound, cycles, count))
    return KernelReport(
        plan.name,
        target,
        _tiling(plan),
        found.programs,
        found.warps,
        found.stages,
        found.registers,
        found.spills,
        found.shared,
        held,
        found.matrix,
        found.serialised,
        found.warnings,
        tuple(loops),
        _seconds(found, loops, launch, gpu) if gpu and isinstance(plan, KernelPlan) else None,
    )


def _scores(plan: KernelPlan | ScanPlan) -> int:
    """Scores of a block: tile by step."""
    tile, step = (*_tiling(plan), 0)[:2]
    return tile * step


def _tiling(plan: KernelPlan | ScanPlan) -> tuple[int, ...]:
    """Tile and step; of a scan its points a block."""
    if isinstance(plan, ScanPlan):
        return (plan.step, plan.step)
    step = next((f.step for f in plan.folds), 0)
    return (plan.tile.block if plan.tile else 0, step)


def _seconds(found: statistics.Statistics, loops: Sequence[LoopReport], launch: Recorded, gpu: Rates) -> float | None:
    """The busiest multiprocessor's loops, or what memory takes for every byte once, whichever is more."""
    if any(x.trips is None for x in loops):
        return None
    program = sum(x.cycles * x.trips for x in loops if x.trips)
    share = found.programs / gpu.processors
    rounds = math.ceil(share) if share < 4 else share  # longer rows of programs even out
    names = {t.name for t in launch.kernel.plan.tensors}
    moved = sum(x.numel() * x.element_size() for n, x in launch.given.tensors.items() if n in names)
    return max(program * rounds / (gpu.clock * issue_model.SUSTAINED), moved / (0.9 * gpu.memory))


if __name__ == "__main__":
    _main()
