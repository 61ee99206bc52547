"""Exchanges as steps of autograd: what goes along a route comes back along it as a gradient.

A device may be several parts of a sequence, one after the other: each brings tensors of its own, and what is added up is added up in the
order of the parts, whichever devices they are on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from einfuse.distributed import routes
from einfuse.distributed.routes import Route
from einfuse.distributed.transport import Transport

Tensors = Mapping[str, torch.Tensor]
Begun = Callable[[], list[list[torch.Tensor]]]


def moved(
    transport: Transport,
    name: str,
    parts: Sequence[Tensors],
    along: Mapping[str, Route],
    anchors: Sequence[torch.Tensor] = (),
    begun: Begun | None = None,
) -> list[dict[str, torch.Tensor]]:
    """The tensors of every part of this device along their routes, in one exchange; differentiable. Every device calls it with the same names.

    ``anchors`` are those of `Move`; ``begun``: it is under way.
    """
    names = sorted(along)
    if not names:
        return [{} for _ in parts]
    arrival = begun or begin(transport, name, parts, along)
    known = [x for x in anchors if x.requires_grad]
    given = [x[n] for x in parts for n in names]
    outs = _Moved.apply(transport, name, arrival, [along[n] for n in names], len(parts), len(known), *given, *known)  # type: ignore[no-untyped-call]
    return [dict(zip(names, own, strict=True)) for own in _rows(outs, len(parts))]


def begin(transport: Transport, name: str, parts: Sequence[Tensors], along: Mapping[str, Route]) -> Begun:
    """Begins what `moved` waits for."""
    names = sorted(along)
    return routes.there(transport, name, [[x[n].detach() for n in names] for x in parts], [along[n] for n in names])


def shared(transport: Transport, name: str, parts: Sequence[Tensors]) -> list[dict[str, torch.Tensor]]:
    """Tensors of which every device, and each of its parts, has the same: as they are, and their gradients are summed over all."""
    names = sorted(n for n, x in parts[0].items() if x.requires_grad)
    if not names or not torch.is_grad_enabled():
        return [dict(x) for x in parts]
    outs = _Shared.apply(transport, name, len(parts), *(x[n] for x in parts for n in names))  # type: ignore[no-untyped-call]
    return [{**x, **dict(zip(names, own, strict=True))} for x, own in zip(parts, _rows(outs, len(parts)), strict=True)]


def once(first: bool, x: torch.Tensor) -> torch.Tensor:
    """A result that every device has, as it is: the gradients that they bring are one and the same, and that of the first device counts."""
    out: torch.Tensor = _Once.apply(first, x)  # type: ignore[no-untyped-call]
    return out


def tied(outs: Tensors, others: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Results as they are. A gradient of any of them also reaches the others, as 0: a device that has no use for what it was sent still
    has to take part in the exchange of gradients.
    """
    waiting = [x for x in others if x.requires_grad]
    names = [n for n, x in outs.items() if x.is_floating_point()]
    if not waiting or not names:
        return dict(outs)
    known = _Tied.apply(len(names), *(outs[n] for n in names), *waiting)  # type: ignore[no-untyped-call]
    return {**outs, **dict(zip(names, known, strict=True))}


def _rows(xs: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """So many stretches of the same length."""
    each = len(xs) // count
    return [xs[k * each : (k + 1) * each] for k in range(count)]


class _Last(torch.autograd.Function):
    """Gradients as they are, which have none themselves. A second backward meets it before any exchange, on every device."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, *gs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(g.view_as(g) for g in gs)

    @staticmethod
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[None, ...]:
        raise NotImplementedError(
            "einfuse.distributed: the gradient of a sharded attention has no derivative; take it of the attention on one device"
        )


def _no_further(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """A backward whose gradients are `_Last`, where they may be differentiated."""

    @functools.wraps(backward)
    def inside(ctx: Any, *gs: torch.Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            found = backward(ctx, *gs)
        if not torch.is_grad_enabled():
            return found
        anchor = torch.empty(0, requires_grad=True)
        last = iter(_Last.apply(anchor, *(x for x in found if isinstance(x, torch.Tensor))))  # type: ignore[no-untyped-call]
        return tuple(next(last) if isinstance(x, torch.Tensor) else x for x in found)

    return inside


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        transport: Transport,
        name: str,
        arrival: Begun,
        along: Sequence[Route],
        parts: int,
        anchors: int,
        *given: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        xs = _rows(given[: parts * len(along)], parts)
        outs = arrival()
        ctx.along, ctx.transport, ctx.name, ctx.parts, ctx.anchors = along, transport, name, parts, anchors
        ctx.shapes = [[x.shape for x in own] for own in xs]
        ctx.mark_non_differentiable(*(y for own in outs for y in own if not y.is_floating_point()))
        return tuple(y for own in outs for y in own)

    @staticmethod
    @_no_further
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gs, needs = _rows(given, ctx.parts), _rows(ctx.needs_input_grad[6 : 6 + len(given)], ctx.parts)
        every = range(len(ctx.along))
        wanted = [n for n in every if (gs[0][n].is_floating_point() if ctx.anchors else any(own[n] for own in needs))]
        found = routes.back(
            ctx.transport,
            ctx.name,
            [[own[n] for n in wanted] for own in gs],
            [ctx.along[n] for n in wanted],
            [[own[n] for n in wanted] for own in ctx.shapes],
        )
        by = [dict(zip(wanted, own, strict=True)) for own in found]
        return (*[None] * 6, *(own.get(n) for own in by for n in every), *[None] * ctx.anchors)


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, transport: Transport, name: str, parts: int, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.transport, ctx.name, ctx.parts = transport, name, parts
        return tuple(x.view_as(x) for x in xs)

    @staticmethod
    @_no_further
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        found = routes.summed(ctx.transport, ctx.name, _rows(gs, ctx.parts))
        return (None, None, None, *found, *[None] * (len(gs) - len(found)))  # one sum for what is one tensor in all parts


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: bool, x: torch.Tensor) -> torch.Tensor:
        ctx.first = first
        return x.view_as(x)

    @staticmethod
    @_no_further
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[None, torch.Tensor]:
        (g,) = gs
        return None, g if ctx.first else torch.zeros_like(g)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.rest = [(x.shape, x.dtype, x.device) for x in xs[count:]]
        return tuple(x.view_as(x) for x in xs[:count])

    @staticmethod
    @_no_further
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, *gs, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.rest))
