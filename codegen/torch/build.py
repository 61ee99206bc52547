"""`build`: a generated text as a callable. It is kept as a file, so that tracebacks and people can read it."""

from __future__ import annotations

import hashlib
import linecache
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    path = folder / f"einfuse_{identifier(plan.name)}_{digest}.py"
    _keep(path, source)
    linecache.cache[str(path)] = (len(source), None, source.splitlines(True), str(path))
    namespace: dict[str, object] = {"__name__": path.stem}
    exec(compile(source, str(path), "exec"), namespace)  # our own text, made by `emit`
    function = namespace["kernel"]
    assert callable(function), "the text defines kernel"
    return TorchKernel(plan, path, function)


def _keep(path: Path, text: str) -> None:
    """Write by an atomic rename; a folder that cannot be written loses only the file."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        return  # the kernel runs from memory
