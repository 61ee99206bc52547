"""A style of `torch.distributed.tensor.parallel.parallelize_module`: attention modules along their sequences. It imports torch's DTensors."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor.parallel import ParallelStyle

from einfuse.distributed.layout import Layout
from einfuse.distributed.programs import Exchange
from einfuse.distributed.use import Devices

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class AlongSequence(ParallelStyle):
    """Attention modules over the devices of a mesh of one axis, each with its part of every sequence, for `parallelize_module`:

        parallelize_module(model, mesh["seq"], {"layers.*.self_attn": AlongSequence()})

    A module's forward is in a block of `use`, which says what it is given and what is refused; its backward need not be.
    """

    def __init__(self, *, layout: Layout | None = None, exchange: Exchange | None = None, timeout: float = 60.0) -> None:
        super().__init__()
        self.layout, self.exchange, self.timeout = layout, exchange, timeout

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        names = device_mesh.mesh_dim_names or ()
        if len(names) != 1:
            raise ValueError(
                f"AlongSequence: the mesh must have one axis with a name, found {len(names)}; take mesh['seq'] of a larger one"
            )
        devices = Devices(device_mesh, names[0], self.layout, self.exchange, self.timeout)
        forward = module.forward

        @functools.wraps(forward)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with devices.block():
                return forward(*args, **kwargs)

        module.forward = inside
        return module
