"""`TARGETS`: what the compiler knows of each kind of GPU, in one place: limits that tiles keep to, and rates of the issue model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Target = Literal["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950"]
KB = 1024


@dataclass(frozen=True, slots=True)
class Rates:
    """One GPU of a kind, as `issue_model` counts: multiprocessors, clock (Hz), memory (bytes/s), and per multiprocessor shared memory in
    bytes, ``matrix`` multiply-adds and fp32 operations a cycle."""

    name: str
    processors: int
    clock: float
    memory: float
    shared: int
    matrix: int
    floats: int


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU. ``shared``: the most shared memory of a program, in bytes. ``lanes``: threads of a warp, counted by registers that one
    of NVIDIA's may use (255): a wavefront of AMD's is 64 threads of 512. ``rows``: of the smallest tile that a matrix instruction takes.

    ``copies``: blocks come by the copy engine (tensor descriptors) where tensors allow it.
    """

    architecture: int | str
    shared: int
    rows: int = 16
    copies: bool = False
    lanes: int = 32
    rates: Rates | None = None

    @property
    def amd(self) -> bool:
        return isinstance(self.architecture, str)

    @property
    def triton(self) -> tuple[str, int | str, int]:
        """The arguments of Triton's ``GPUTarget``: back end, architecture, threads of a warp."""
        return ("hip", self.architecture, 64) if self.amd else ("cuda", self.architecture, 32)


TARGETS: dict[Target, Gpu] = {
    "sm_80": Gpu(80, 163 * KB, rates=Rates("A100 SXM", 108, 1.41e9, 2.0e12, 164 * KB, 1024, 64)),
    "sm_86": Gpu(86, 99 * KB),
    "sm_89": Gpu(89, 99 * KB),
    "sm_90": Gpu(90, 227 * KB, 64, True, rates=Rates("H100 SXM", 132, 1.83e9, 3.35e12, 228 * KB, 2048, 128)),
    "sm_100": Gpu(100, 227 * KB, 64, True),
    "sm_120": Gpu(120, 99 * KB),
    "gfx942": Gpu("gfx942", 64 * KB, lanes=128),
    "gfx950": Gpu("gfx950", 160 * KB, lanes=128),
}
"""Shared memory of a program: CUDA programming guide, table of compute capabilities; LDS: CDNA 3 and CDNA 4 instruction set references."""


def of_nvidia(capability: tuple[int, int]) -> Target:
    """The target of a compute capability: its own, or the nearest below; the one that asks least of a GPU where there is none."""
    own = 10 * capability[0] + capability[1]
    known = {x.architecture: n for n, x in TARGETS.items() if isinstance(x.architecture, int)}
    return known[max((a for a in known if a <= own), default=86)]


def of_amd(architecture: str) -> Target:
    """The target of an architecture such as ``gfx942:sramecc+:xnack-``; the one with less memory for those that are not in the table."""
    name = architecture.split(":")[0]
    return next((n for n, x in TARGETS.items() if x.architecture == name), "gfx942")
