"""Exchanges as steps of autograd: what goes along a route comes back along it as a gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from einfuse.distributed import routes
from einfuse.distributed.routes import Route
from einfuse.distributed.transport import Transport


def moved(
    transport: Transport,
    name: str,
    tensors: Mapping[str, torch.Tensor],
    along: Mapping[str, Route],
    anchors: Sequence[torch.Tensor] = (),
) -> dict[str, torch.Tensor]:
    """Tensors along their routes, in one exchange; differentiable. Every device calls it with the same names.

    ``anchors`` are given where devices made the tensors, some perhaps of nothing: inputs that gradients are asked of on all devices, so that
    each takes part in the exchange of gradients.
    """
    names = sorted(along)
    if not names:
        return {}
    known = [x for x in anchors if x.requires_grad]
    outs = _Moved.apply(transport, name, [along[n] for n in names], len(known), *(tensors[n] for n in names), *known)  # type: ignore[no-untyped-call]
    return dict(zip(names, outs, strict=True))


def shared(transport: Transport, name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of which every device has the same: as they are, and their gradients are summed over all devices."""
    names = sorted(n for n, x in tensors.items() if x.requires_grad)
    if not names or not torch.is_grad_enabled():
        return dict(tensors)
    outs = _Shared.apply(transport, name, *(tensors[n] for n in names))  # type: ignore[no-untyped-call]
    return {**tensors, **dict(zip(names, outs, strict=True))}


def once(transport: Transport, x: torch.Tensor) -> torch.Tensor:
    """A result that every device has, as it is: the gradients that they bring are one and the same, and that of the first device counts."""
    out: torch.Tensor = _Once.apply(transport, x)  # type: ignore[no-untyped-call]
    return out


def tied(outs: Mapping[str, torch.Tensor], others: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Results as they are. A gradient of any of them also reaches the others, as 0: a device that has no use for what it was sent still
    has to take part in the exchange of gradients.
    """
    waiting = [x for x in others if x.requires_grad]
    names = [n for n, x in outs.items() if x.is_floating_point()]
    if not waiting or not names:
        return dict(outs)
    known = _Tied.apply(len(names), *(outs[n] for n in names), *waiting)  # type: ignore[no-untyped-call]
    return {**outs, **dict(zip(names, known, strict=True))}


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, transport: Transport, name: str, along: Sequence[Route], anchors: int, *given: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        xs = given[: len(along)]
        outs = routes.there(transport, name, [x.detach() for x in xs], along)
        ctx.along, ctx.transport, ctx.name, ctx.anchors = along, transport, name, anchors
        ctx.shapes = [x.shape for x in xs]
        ctx.mark_non_differentiable(*(y for y in outs if not y.is_floating_point()))
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs = ctx.needs_input_grad[4:]
        wanted = [n for n, g in enumerate(gs) if (g.is_floating_point() if ctx.anchors else needs[n])]
        found = routes.back(
            ctx.transport, ctx.name, [gs[n] for n in wanted], [ctx.along[n] for n in wanted], [ctx.shapes[n] for n in wanted]
        )
        by = dict(zip(wanted, found, strict=True))
        return (None, None, None, None, *(by.get(n) for n in range(len(gs))), *[None] * ctx.anchors)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transport: Transport, name: str, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.transport, ctx.name = transport, name
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, None, *routes.summed(ctx.transport, ctx.name, gs))


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transport: Transport, x: torch.Tensor) -> torch.Tensor:
        ctx.first = transport.rank == 0
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[None, torch.Tensor]:
        (g,) = gs
        return None, g if ctx.first else torch.zeros_like(g)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.rest = [(x.shape, x.dtype, x.device) for x in xs[count:]]
        return tuple(x.view_as(x) for x in xs[:count])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, *gs, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.rest))
