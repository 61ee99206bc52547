"""Tilings on a device: the kernels of causal attention at tiles, warps, stages and copies that are forced, by the device's own clock.

What `codegen/triton/options.py` chooses is judged by this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import gpu_time
import gpu_workers
import torch

import einfuse
from einfuse.codegen import KernelPlan, Storage
from einfuse.codegen import triton as printer
from einfuse.codegen.triton.options import Options
from einfuse.runtime import backends

SECONDS = 100.0


class Way(NamedTuple):
    """How one kernel is built; ``warps`` and ``stages`` of 0 are what `launch_options` takes."""

    tile: int
    step: int
    warps: int = 0
    stages: int = 0
    descriptors: bool = True


class Ways(NamedTuple):
    """A way for each kernel of a training step: by how many gradients it adds up."""

    forward: Way
    rows: Way
    columns: Way


SETS = (
    Ways(Way(128, 128), Way(128, 128), Way(128, 64)),
    Ways(Way(128, 64, 4), Way(128, 64, 8), Way(64, 64, 4)),
    Ways(Way(128, 64, 8), Way(64, 64, 4), Way(64, 128, 4)),
    Ways(Way(64, 128, 4), Way(64, 128, 4), Way(128, 32, 8)),
    Ways(Way(64, 64, 4), Way(128, 32, 8), Way(64, 32, 4)),
    Ways(Way(128, 128, 8, 2), Way(128, 128, 8, 1), Way(128, 64, 8, 2)),
    Ways(Way(128, 128, 4), Way(128, 64, 8, 2), Way(128, 128, 8)),
    Ways(Way(128, 128, descriptors=False), Way(128, 128, descriptors=False), Way(128, 64, descriptors=False)),
    Ways(Way(128, 64, 8, 3, False), Way(128, 64, 8, 3, False), Way(64, 64, 4, 2)),
    Ways(Way(128, 64, 8, 4), Way(128, 64, 8, 4), Way(128, 64, 8, 1)),
)


@dataclass(frozen=True, slots=True)
class Forced(backends.TritonBackend):
    """The back end with one tiling for each number of gradients; nothing smaller is taken where that spills."""

    ways: Ways = SETS[0]

    @property
    def identity(self) -> str:
        return f"forced {self.ways}"

    def tilings(self, storage: Storage, width: int, gradients: int) -> backends.Tilings:
        way = self.ways[min(gradients, 2)]
        return ((way.tile, way.step),)

    def emit(self, plan: KernelPlan) -> str:
        role = "columns" if "columns" in plan.name else "rows" if "rows" in plan.name else "forward"
        way: Way = getattr(self.ways, role)
        if not plan.folds:
            return printer.emit(plan)  # of rows alone
        options = Options(
            num_warps=way.warps or None, num_stages=way.stages or None, descriptors=None if way.descriptors else False
        )
        return printer.emit(plan, options)


def tasks(widths: tuple[int, ...] = (64, 128), warm: bool = False) -> list[gpu_workers.Task]:
    """Every set of ways at every width."""
    return [gpu_workers.Task("gpu_search:timed", (n, width, warm), SECONDS) for width in widths for n in range(len(SETS))]


def timed(place: int, width: int, warm: bool, name: str = "causal") -> dict[str, Any]:
    """Milliseconds of each kernel of a training step of 4 x 16 heads of 4096 tokens, built in the ways of a set."""
    ways = SETS[place]
    backends.BACKENDS["triton"] = Forced(ways=ways)
    ours = einfuse.compile(name, backend="triton")
    x = {n: torch.randn(4, 16, 4096, width, device="cuda", dtype=torch.bfloat16).requires_grad_() for n in "qkv"}
    found: dict[str, Any] = {"width": width, "ways": {k: w._asdict() for k, w in ways._asdict().items()}}
    for direction, leaves in (("forward", []), ("backward", [*x.values()])):
        run = gpu_time.prepared(lambda: ours(**x), leaves)
        run()
        if not warm:
            run()
            found[direction] = gpu_time.kernels_of(run)
    torch.cuda.synchronize()
    return found
