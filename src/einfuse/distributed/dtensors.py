"""DTensors in and out: their local parts go through, where their placements are those of the spec's ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from einfuse.distributed.here import Axis, axes_of
from einfuse.ir import Cascade
from einfuse.ir import expr as ex
from einfuse.ir.passes.shard import held
from einfuse.runtime import binding

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def local(c: Cascade, axes: Sequence[Axis], mesh: DeviceMesh, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts that this device holds; their gradients are placed as they are.

    Raises ValueError for a tensor that is placed otherwise than its ranks ask for: nothing is moved without being asked.
    """
    places = {a.name: held(c, a.ranks) for a in axes}
    out: dict[str, torch.Tensor] = {}
    for n, x in found.items():
        if isinstance(x, DTensor):
            along = [places.get(name, {}).get(n) for name in _names(mesh)]
            wanted = _placed(along)
            if x.device_mesh != mesh or [_positive(p, x.ndim) for p in x.placements] != wanted:
                raise ValueError(
                    f"{c.name}: {n} has to be placed as {_shown(wanted)} on {_names(mesh)}, found {_shown(x.placements)} "
                    f"on {_names(x.device_mesh)}; redistribute it"
                )
            x = x.to_local(grad_placements=wanted)
        out[n] = x
    return out


def whole(
    c: Cascade, axes: Sequence[Axis], mesh: DeviceMesh, found: Mapping[str, torch.Tensor], outs: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Outputs as DTensors, of the shapes that the inputs ``found`` tell."""
    shapes = {n: torch.empty(x.shape, dtype=x.dtype, device="meta") for n, x in found.items()}
    sizes = binding.sizes(c, shapes)
    ranks = {a.name: a.ranks for a in axes}
    made: dict[str, torch.Tensor] = {}
    for n, o in outs.items():
        own = axes_of(c, n)
        along = [next((k for k, r in enumerate(own) if r in ranks.get(name, ())), None) for name in _names(mesh)]
        shape = [int(binding.evaluate(ex.size(c.rank(r).size), sizes)) for r in own]
        stride = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
        made[n] = DTensor.from_local(
            o.contiguous(), mesh, _placed(along), run_check=False, shape=torch.Size(shape), stride=stride
        )
    return made


def _names(mesh: DeviceMesh) -> tuple[str, ...]:
    return tuple(mesh.mesh_dim_names or ())


def _placed(along: Sequence[int | None]) -> list[Placement]:
    return [Replicate() if a is None else Shard(a) for a in along]


def _positive(p: Placement, ndim: int) -> Placement:
    return Shard(p.dim % ndim) if isinstance(p, Shard) else p


def _shown(placements: Sequence[Placement]) -> str:
    return ", ".join(map(str, placements))
