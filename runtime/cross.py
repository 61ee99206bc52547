"""What a GPU compiler makes of our kernels, without a GPU: registers, spills, shared memory, matrix instructions."""

from __future__ import annotations

import functools
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

import torch

from einfuse.codegen import KernelPlan
from einfuse.codegen.plan import Fold
from einfuse.ir import EinfuseError
from einfuse.runtime import cache
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import Target

TARGETS: tuple[Target, ...] = ("sm_80", "sm_90", "gfx942")


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """One kernel compiled for one target at a tile and step. ``spills`` must be 0; ``matrix`` is the kind of matrix instruction used, or ""."""

    name: str
    target: str
    dtype: str
    tiling: tuple[int, int]
    registers: int
    spills: int
    shared: int
    matrix: str
    fits: bool

    @property
    def ok(self) -> bool:
        return self.spills == 0 and self.fits


class _Job(TypedDict):
    plan: KernelPlan
    source: str
    target: str


def cross_compile(
    attention: Attention,
    targets: Sequence[Target] = TARGETS,
    dtype: torch.dtype = torch.bfloat16,
    backward: bool = True,
    **sizes: int,
) -> list[CompiledKernel]:
    """Compiles every Triton kernel of an attention for ``targets``, at the largest tiles that keep its values in registers.

    Feature widths are 64 unless given by name. Runs in a process of its own, where Triton's interpreter is off, and remembers what
    it found. Raises EinfuseError with the compiler's own words where a kernel does not compile.
    """
    short = str(dtype).removeprefix("torch.")
    waiting = [(c, t) for t in targets for c in attention.candidates("triton", dtype, backward, sizes, t)]
    done: dict[int, CompiledKernel] = {}
    while len(done) < len(waiting):
        trying = [n for n in range(len(waiting)) if n not in done]
        jobs: list[_Job] = [{"plan": c.plan, "source": c.source, "target": t} for c, t in (waiting[n] for n in trying)]
        key = cache.key("cross", *(j["source"] + j["target"] for j in jobs))
        for n, found in zip(trying, cache.remembered("cross", key, functools.partial(_run, jobs)), strict=True):
            candidate, target = waiting[n]
            plan = candidate.plan
            tiling = (plan.tile.block if plan.tile else 1, next((s.step for s in plan.steps if isinstance(s, Fold)), 1))
            kernel = CompiledKernel(name=plan.name, target=target, dtype=short, tiling=tiling, **found)  # type: ignore[arg-type]
            smaller = None if kernel.ok else candidate.smaller()
            if smaller is None:
                done[n] = kernel
            else:
                waiting[n] = (smaller, target)
    return [done[n] for n in range(len(waiting))]


def _run(jobs: list[_Job]) -> list[dict[str, object]]:
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.pickle"
        path.write_bytes(pickle.dumps(jobs))
        done = subprocess.run(
            [sys.executable, "-m", "einfuse.runtime.cross", str(path)], env=env, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise EinfuseError(f"a kernel does not compile:\n{done.stderr[-4000:]}")
    out: list[dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return out


def _main(path: str) -> None:
    from einfuse.codegen.triton import measure

    out = []
    for job in pickle.loads(Path(path).read_bytes()):
        found = measure(job["plan"], job["source"], job["target"], cache.folder() / "triton")
        kept = {k: v for k, v in asdict(found).items() if k in ("registers", "spills", "shared", "matrix")}
        out.append({**kept, "fits": found.fits})
    print(json.dumps(out))


if __name__ == "__main__":
    _main(sys.argv[1])
