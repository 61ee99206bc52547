"""What a GPU compiler makes of our kernels, without a GPU: registers, spills, shared memory, matrix instructions."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import torch

from einfuse.codegen import KernelPlan
from einfuse.codegen.scan import ScanPlan
from einfuse.codegen.targets import TARGETS, Target
from einfuse.ir import EinfuseError, Scalar
from einfuse.runtime import binding, cache, records
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import TritonBackend
from einfuse.runtime.inside import Candidate, launched

USUAL: tuple[Target, ...] = ("sm_80", "sm_90", "gfx942")


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One kernel compiled for one target at a tile and step. ``spills`` must be 0; ``matrix`` is the kind of matrix instruction used, or "",
    and ``serialised`` whether NVIDIA's assembler waits for each."""

    name: str
    target: str
    dtype: str
    tiling: tuple[int, int]
    registers: int
    spills: int
    shared: int
    matrix: str
    fits: bool
    serialised: bool = False

    @property
    def ok(self) -> bool:
        return self.spills == 0 and self.fits


class _Job(TypedDict):
    plan: KernelPlan | ScanPlan
    source: str
    target: str
    options: dict[str, int]


_Try = tuple[Candidate, Target, CompiledKernel | None]


def cross_compile(
    attention: Attention,
    targets: Sequence[Target] = USUAL,
    dtype: torch.dtype = torch.bfloat16,
    backward: bool = True,
    call: Mapping[str, torch.Tensor | Scalar] | None = None,
    **sizes: int,
) -> list[CompiledKernel]:
    """Compiles every Triton kernel of an attention for ``targets``, at the largest tiles that keep its values in registers.

    Feature widths are 64 unless given by name. With the arguments of a ``call``, the kernels that such a call takes: those of short
    sequences, and those that walk a mask by lists. Runs in a process of its own, where Triton's interpreter is off, and remembers what
    it found. Raises EinfuseError for a target that is not in `TARGETS`, and with the compiler's own words where a kernel does not compile.
    """
    for name in targets:
        if name not in TARGETS:
            raise EinfuseError(f"there is no target {name!r}; choose from {', '.join(TARGETS)}")
    tries = [
        (c, t)
        for t in targets
        for c in (
            attention.candidates("triton", dtype, backward, sizes, t)
            if call is None
            else taken(attention, dtype, backward, call, t)
        )
    ]
    return settled(tries, dtype)


def settled(tries: Sequence[tuple[Candidate, Target]], dtype: torch.dtype = torch.bfloat16) -> list[CompiledKernel]:
    """The kernels that calls take in the end: these, or of one that spills those to take instead, and so on."""
    short = str(dtype).removeprefix("torch.")
    waiting: list[_Try] = [(c, t, None) for c, t in tries]
    while any(done is None for _, _, done in waiting):
        trying = [(c, t) for c, t, done in waiting if done is None]
        jobs: list[_Job] = [{"plan": c.plan, "source": c.source, "target": t, "options": dict(c.options)} for c, t in trying]
        key = cache.key("cross", *(j["source"] + j["target"] for j in jobs))
        found = iter(cache.remembered("cross", key, functools.partial(_run, jobs)))
        after: list[_Try] = []
        for candidate, target, done in waiting:
            if done is not None:
                after.append((candidate, target, done))
                continue
            plan = candidate.plan
            kernel = CompiledKernel(name=plan.name, target=target, dtype=short, tiling=_tiling(plan), **next(found))  # type: ignore[arg-type]
            smaller = () if kernel.ok else candidate.smaller()
            after += [(c, target, None) for c in smaller] or [(candidate, target, kernel)]
        waiting = after
    return [done for _, _, done in waiting if done is not None]


def taken(
    attention: Attention, dtype: torch.dtype, backward: bool, call: Mapping[str, torch.Tensor | Scalar], target: Target
) -> list[Candidate]:
    """The kernels that a call with these arguments, their floats of 16 bits and more in ``dtype``, launches on a GPU of that kind."""
    tensors, numbers = binding.arguments(attention.cascade, (), call)
    typed = {n: x.to(dtype) if x.is_floating_point() and x.itemsize > 1 else x for n, x in tensors.items()}
    return [Candidate.taken(x) for x in launched(attention, typed, numbers, backward, TritonBackend(target=target))]


def _tiling(plan: KernelPlan | ScanPlan) -> tuple[int, int]:
    """Tile and step; of a scan its columns and the points of a block."""
    if isinstance(plan, ScanPlan):
        return next(
            (f.block for f in plan.features if f.rank == plan.shared), max((f.block for f in plan.features), default=1)
        ), plan.step
    steps = [f.step for f in plan.folds]
    held = (
        [b.block for b in plan.features] if plan.tile is None and not steps else []
    )  # without loops: what would be tile and step
    return (*held, 1, 1)[:2] if held else (plan.tile.block if plan.tile else 1, next(iter(steps), 1))  # type: ignore[return-value]


def _run(jobs: list[_Job]) -> list[dict[str, object]]:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "einfuse.runtime.cross"]
    done = subprocess.run(command, input=records.dumps(jobs), env=env, capture_output=True, check=False)
    if done.returncode:
        raise EinfuseError(f"a kernel does not compile:\n{done.stderr.decode(errors='replace')[-4000:]}")
    out: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return out


def _main() -> None:
    from einfuse.codegen.triton import measure

    out = []
    for job in records.loads(sys.stdin.buffer.read()):
        found = measure(job["plan"], job["source"], job["target"], cache.folder() / "triton", **job["options"])
        kept = {k: v for k, v in asdict(found).items() if k in ("registers", "spills", "shared", "matrix", "serialised")}
        out.append({**kept, "fits": found.fits})
    print(json.dumps(out))


if __name__ == "__main__":
    _main()
