"""`build`: a generated text as a callable. It is kept as a file, so that tracebacks and people can read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from einfuse import _files as files
from einfuse.codegen.plan import KernelPlan
from einfuse.codegen.torch.printer import identifier
from einfuse.ir import Scalar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TorchKernel:
    """A loaded kernel; a call writes the plan's output tensors. ``path`` is where its text is kept."""

    plan: KernelPlan
    path: Path
    function: Callable[..., None]

    def __call__(self, tensors: Mapping[str, torch.Tensor], params: Mapping[str, Scalar], sizes: Mapping[str, int]) -> None:
        import torch

        with torch.no_grad():
            self.function(tensors, params, sizes)


def build(plan: KernelPlan, source: str, folder: Path) -> TorchKernel:
    """The kernel of a text that `emit` made."""
    path = folder / f"{files.stem(identifier(plan.name), source)}.py"
    namespace: dict[str, object] = {"__name__": path.stem}
    exec(compile(source, str(path), "exec"), namespace)  # our own text, made by `emit`
    function = namespace["kernel"]
    assert callable(function), "the text defines kernel"
    files.keep_text(path, source, function)
    return TorchKernel(plan, path, function)
