"""What kernels have to know of a GPU: which target it is, and how exact torch wants its products of float32."""

from __future__ import annotations

import functools
from typing import Literal

import torch

from einfuse.codegen.targets import TARGETS, Target, of_amd, of_nvidia

Precision = Literal["ieee", "tf32"]


@functools.cache
def target_of(device: torch.device) -> Target:
    """The kind of a GPU: its own, or the nearest one that asks no more of it."""
    if torch.version.hip:
        return of_amd(torch.cuda.get_device_properties(device).gcnArchName)
    return of_nvidia(torch.cuda.get_device_capability(device))


def switched() -> str:
    """What torch's switch says of float32 matrix products on GPUs, as it is now."""
    return str(torch.backends.cuda.matmul.fp32_precision)


def fp32_products(target: Target) -> Precision:
    """The precision of float32 matrix products by that switch; AMD's are exact."""
    return "tf32" if switched() == "tf32" and not TARGETS[target].amd else "ieee"
