"""The text and the callable of a scan's plan on each back end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from einfuse.codegen.scan.plan import ScanPlan
from einfuse.ir import Scalar

if TYPE_CHECKING:
    import torch

Name = Literal["cpu", "triton", "torch"]
Kernel = Callable[[Mapping[str, "torch.Tensor"], Mapping[str, Scalar], Mapping[str, int]], int | None]


def emit(plan: ScanPlan, backend: Name) -> str:
    """The standalone text of the kernel."""
    from einfuse.codegen.scan import emit_cpu, emit_torch, emit_triton

    return {"cpu": emit_cpu.emit, "triton": emit_triton.emit, "torch": emit_torch.emit}[backend](plan)


def build(plan: ScanPlan, source: str, backend: Name, folder: Path) -> Kernel:
    """The kernel of a text that `emit` made."""
    from einfuse.codegen.cpu import build as build_cpu
    from einfuse.codegen.torch import build as build_torch

    if backend == "triton":
        from einfuse.codegen.triton import build as build_triton

        return build_triton(plan, source, folder)  # type: ignore[arg-type]  # it reads the name alone
    if backend == "cpu":
        return build_cpu(plan, source, folder, ("-O2",))  # type: ignore[arg-type]  # it reads what both plans have
    return build_torch(plan, source, folder)  # type: ignore[arg-type]  # it reads the name alone
