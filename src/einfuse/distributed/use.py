"""A block in which the attentions of models run over the devices of a mesh: each device holds a part of every sequence."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from einfuse import _spread
from einfuse.distributed.here import sequence
from einfuse.distributed.layout import Layout
from einfuse.distributed.programs import Exchange
from einfuse.distributed.sharded import Output, Sharded, shard
from einfuse.ir.passes.shard import held
from einfuse.runtime.attention import Attention

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@contextmanager
def use(
    mesh: DeviceMesh,
    *,
    sequence: str,
    layout: Layout | None = None,
    exchange: Exchange | None = None,
    timeout: float = 60.0,
) -> Iterator[None]:
    """Inside, what models call through `einfuse.integrations` attends over all devices of the axis ``sequence`` of a mesh.

    A model is given this device's tokens, [B, N of this device, ...], and their positions: everything but attention is about single tokens.
    Devices hold them one after the other, or as a ``layout`` says. Gradients of parameters are this device's share of the sum, as those of all
    layers are: add them up over the axis. It holds for the whole process, backward passes included, until the block ends.

    ``exchange`` and ``timeout`` are those of `shard`. Calls with a cache of keys, with queries and keys of different numbers, with dense
    masks or biases, and of packed sequences raise ValueError: they speak of positions of the whole, which a device does not know.
    Compiled models break their graph at each attention.
    """
    with Devices(mesh, sequence, layout, exchange, timeout).block():
        yield


class Devices:
    """The attentions of models over the devices of an axis, each sharded once. Raises ValueError for an axis that the mesh has not."""

    def __init__(
        self, mesh: DeviceMesh, sequence: str, layout: Layout | None, exchange: Exchange | None, timeout: float
    ) -> None:
        if sequence not in (mesh.mesh_dim_names or ()):
            raise ValueError(f"use: the mesh has the axes {', '.join(mesh.mesh_dim_names or ())}, and no {sequence!r}")
        self.mesh, self.sequence, self.layout, self.exchange, self.timeout = mesh, sequence, layout, exchange, timeout
        self.made: dict[int, tuple[Attention, Sharded]] = {}
        self._untraced = torch.compiler.disable(
            self._called, reason="einfuse.distributed.use: an attention over devices is not traced"
        )

    @contextmanager
    def block(self) -> Iterator[None]:
        """Where the attentions of models are these."""
        if self.mesh[self.sequence].size() == 1:
            yield
            return
        run = self._run
        _spread.BLOCKS.append(run)
        try:
            yield
        finally:
            _spread.BLOCKS.remove(run)

    def _run(self, attention: Attention) -> _spread.Run:
        return functools.partial(self._untraced, attention)

    def _called(self, attention: Attention, *args: torch.Tensor, **kwargs: Any) -> Output:
        found = self.sharded(attention)
        return found(*args, **_shared(found, kwargs))

    def sharded(self, attention: Attention) -> Sharded:
        """An attention along the axis: with all of its sequences."""
        if id(attention) not in self.made:
            along = dict.fromkeys(sequence(attention.cascade), self.sequence)
            found = shard(
                attention, self.mesh, exchange=self.exchange, timeout=self.timeout, parts=None, bandwidth=None, **along
            )
            self.made[id(attention)] = attention, found if self.layout is None else found.on(self.layout)
        return self.made[id(attention)][1]


def _shared(found: Sharded, given: dict[str, Any]) -> dict[str, Any]:
    """What all devices have, with gradients that are a device's share: `Sharded` gives each the sum over all."""
    moving = {n: x for n, x in given.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    if not moving:
        return given
    attention, _ = found.attention.variant(given) if found.attention.optional else (found.attention, given)
    (axis,) = found.axes
    parts, size = held(attention.cascade, axis.ranks), found.transports[axis.name].size
    return given | {n: _Share.apply(x, size) for n, x in moving.items() if n not in parts}  # type: ignore[no-untyped-call]


class _Share(torch.autograd.Function):
    """The tensor itself, whose gradient is divided by the number of devices."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, size: int) -> torch.Tensor:
        ctx.size = size
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient / ctx.size, None
