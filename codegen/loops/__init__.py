"""The readable back end: a kernel is the text of its plan, and running it is `einfuse.codegen.plan.interpret`, in straight loops.

It is what a back end has to do and no more, thousands of times slower than the others, and the first to read for who writes another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from einfuse.codegen.plan import KernelPlan, read, show
from einfuse.ir import Scalar

if TYPE_CHECKING:
    import torch


def emit(plan: KernelPlan) -> str:
    """The text of the plan."""
    return show(plan)


def build(plan: KernelPlan, source: str, folder: Path) -> LoopsKernel:
    """The kernel of a text that `emit` made; nothing is kept in ``folder``."""
    return LoopsKernel(read(source))


@dataclass(frozen=True, slots=True)
class LoopsKernel:
    """A call writes the plan's output tensors."""

    plan: KernelPlan

    def __call__(self, tensors: Mapping[str, torch.Tensor], params: Mapping[str, Scalar], sizes: Mapping[str, int]) -> None:
        import torch

        from einfuse.codegen.plan.interpret import interpret

        with torch.no_grad():
            interpret(self.plan, tensors, params, sizes, torch.float64 if self.plan.compute == "f64" else torch.float32)
