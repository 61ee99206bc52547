"""What the functions and the reductions of the IR mean, on torch tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from einfuse.ir.functions import COPY, FUNCTIONS

TORCH: dict[str, Callable[..., Tensor]] = {name: f.of(torch) for name, f in {**FUNCTIONS, COPY.name: COPY}.items()}
