"""How what one device computes is run: on further axes of the mesh, or by a kernel."""

from __future__ import annotations

from collections.abc import Callable

import torch

from einfuse.distributed.here import Here, Kind, Values
from einfuse.ir import Cascade

Inner = Callable[[Cascade, Values, Here, Kind], dict[str, torch.Tensor]]
