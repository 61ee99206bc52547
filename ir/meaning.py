"""What the functions and the reductions of the IR mean, on torch tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from einfuse.ir.functions import COPY, FUNCTIONS

TORCH: dict[str, Callable[..., Tensor]] = {name: f.of(torch) for name, f in {**FUNCTIONS, COPY.name: COPY}.items()}
REDUCE: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "sum": lambda x, axes: x.sum(axes),
    "max": lambda x, axes: x.amax(axes),
    "min": lambda x, axes: x.amin(axes),
    "any": lambda x, axes: x.bool().any(dim=axes[0]) if len(axes) == 1 else x.bool().flatten(axes[0]).any(-1),
    "prod": lambda x, axes: x.flatten(axes[0]).prod(-1),
}
COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
    "any": torch.logical_or,
    "prod": torch.mul,
}
