"""Plans as Pallas kernels for JAX: `emit` prints a module that needs JAX and torch, `build` loads it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from einfuse.codegen import torch as texts
from einfuse.codegen.pallas.emit import emit as emit
from einfuse.codegen.plan import KernelPlan
from einfuse.ir import EinfuseError


def build(plan: KernelPlan, source: str, folder: Path) -> texts.TorchKernel:
    """The kernel of a text that `emit` made. Raises EinfuseError where JAX is not installed."""
    if find_spec("jax") is None:
        raise EinfuseError("the back end pallas runs on JAX, which is not installed: pip install 'einfuse[pallas]'")
    return texts.build(plan, source, folder)
