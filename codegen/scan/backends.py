"""The kernels of a scan's plan on each back end: their texts, and the callables of those."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from einfuse.codegen.scan.plan import ScanPlan
from einfuse.ir import Scalar

if TYPE_CHECKING:
    import torch

    from einfuse.codegen.triton.options import GpuTarget

Name = Literal["cpu", "triton", "torch", "loops"]
Kernel = Callable[[Mapping[str, "torch.Tensor"], Mapping[str, Scalar], Mapping[str, int]], int | None]


class Piece(Protocol):
    """One of the kernels that a scan runs in turn; ``smaller`` gives those to take instead where it spills registers."""

    @property
    def plan(self) -> ScanPlan: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> dict[str, int]: ...
    def smaller(self) -> tuple[Piece, ...]: ...


def pieces(plan: ScanPlan, backend: Name, target: GpuTarget = "sm_90", crew: int = 1) -> tuple[Piece, ...]:
    """The kernels of a scan in the order they run. On the CPU ``crew`` threads share each point of the ambient ranks."""
    from einfuse.codegen.scan import emit_torch, ladder, team

    if backend == "triton":
        return ladder.kernels(plan, target)
    if backend == "cpu":
        return team.kernels(plan, crew)
    return (team.Whole(plan, emit_torch.emit(plan)),)


def build(plan: ScanPlan, source: str, backend: Name, folder: Path) -> Kernel:
    """The kernel of the text of a piece."""
    from einfuse.codegen.cpu import build as build_cpu
    from einfuse.codegen.torch import build as build_torch

    if backend == "triton":
        from einfuse.codegen.triton import build as build_triton

        return build_triton(plan, source, folder)  # type: ignore[arg-type]  # it reads the name alone
    if backend == "cpu":
        return build_cpu(plan, source, folder, ("-O2",))  # type: ignore[arg-type]  # it reads what both plans have
    return build_torch(plan, source, folder)  # type: ignore[arg-type]  # it reads the name alone
