"""Exchanges as steps of autograd: what goes along a route comes back along it as a gradient.

A move is two steps, one that sends and one that waits, and so is its gradient:

    sent ----------------------> arrived          forward
    gradient arrived <---------- gradient sent    backward

What is computed between the two of a forward is computed between the two of its backward, while numbers travel.

A device may be several parts of a sequence, one after the other: each brings tensors of its own, and what is added up is added up in the
order of the parts, whichever devices they are on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from einfuse.distributed import routes
from einfuse.distributed.routes import Route
from einfuse.distributed.transport import Transport

Tensors = Mapping[str, torch.Tensor]
Arrival = Callable[[], list[list[torch.Tensor]]]


@dataclass(slots=True, eq=False)
class _Way:
    """What both steps of a move know. ``there`` waits for tensors, ``back`` for gradients: each is set by one step and taken by the other."""

    transport: Transport
    name: str
    along: Sequence[Route]
    parts: int
    anchored: bool
    shapes: list[list[torch.Size]] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    there: Arrival | None = None
    back: Arrival | None = None


class Begun(NamedTuple):
    """A move of tensors with these names that is under way; ``token`` leads from its second step to the first one."""

    names: Sequence[str]
    way: _Way
    token: torch.Tensor


def begin(
    transport: Transport, name: str, parts: Sequence[Tensors], along: Mapping[str, Route], anchors: Sequence[torch.Tensor] = ()
) -> Begun:
    """Sends the tensors of every part of this device along their routes, all in one exchange; `arrived` waits for it. Every device calls it
    with the same names. ``anchors`` are those of `Move`.
    """
    names, known = sorted(along), [x for x in anchors if x.requires_grad]
    way = _Way(transport, name, [along[n] for n in names], len(parts), bool(known))
    if not names:
        return Begun(names, way, torch.empty(0))
    given = [x[n] for x in parts for n in names]
    return Begun(names, way, _Left.apply(way, *given, *known))  # type: ignore[no-untyped-call]


def arrived(begun: Begun) -> list[dict[str, torch.Tensor]]:
    """What the tensors of every part of this device have become; differentiable."""
    names, way, token = begun
    outs = _Arrived.apply(way, token) if names else ()  # type: ignore[no-untyped-call]
    return [dict(zip(names, own, strict=True)) for own in _rows(outs, way.parts)]


def moved(
    transport: Transport, name: str, parts: Sequence[Tensors], along: Mapping[str, Route], anchors: Sequence[torch.Tensor] = ()
) -> list[dict[str, torch.Tensor]]:
    """`begin` and `arrived`."""
    return arrived(begin(transport, name, parts, along, anchors))


def shared(transport: Transport, name: str, parts: Sequence[Tensors]) -> list[dict[str, torch.Tensor]]:
    """Tensors of which every device, and each of its parts, has the same: as they are, and their gradients are summed over all."""
    names = sorted(n for n, x in parts[0].items() if x.requires_grad)
    if not names or not torch.is_grad_enabled():
        return [dict(x) for x in parts]
    outs = _Shared.apply(transport, name, len(parts), *(x[n] for x in parts for n in names))  # type: ignore[no-untyped-call]
    return [{**x, **dict(zip(names, own, strict=True))} for x, own in zip(parts, _rows(outs, len(parts)), strict=True)]


@dataclass(frozen=True, slots=True)
class Turned:
    """Of every part of this device the fields of `Turn`, and the backward of all."""

    name: str
    inputs: Sequence[Tensors]
    outs: Sequence[Tensors]
    kept: Sequence[Tensors]
    backward: Callable[[Sequence[Tensors], Sequence[Tensors]], Sequence[Tensors]]

    def apply(self) -> list[dict[str, torch.Tensor]]:
        """The outputs, differentiable by that backward."""
        if not self.inputs[0]:
            return [dict(x) for x in self.outs]
        found = _Turned.apply(self, *(x for own in self.inputs for x in own.values()))  # type: ignore[no-untyped-call]
        return [dict(zip(self.outs[0], own, strict=True)) for own in _rows(found, len(self.outs))]


def once(name: str, first: bool, x: torch.Tensor) -> torch.Tensor:
    """A result that every device has, as it is: the gradients that they bring are one and the same, and that of the first device counts."""
    out: torch.Tensor = _Once.apply(name, first, x)  # type: ignore[no-untyped-call]
    return out


def tied(name: str, outs: Tensors, others: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Results as they are. A gradient of any of them also reaches the others, as 0: a device that has no use for what it was sent still
    has to take part in the exchange of gradients.
    """
    waiting = [x for x in others if x.requires_grad]
    names = [n for n, x in outs.items() if x.is_floating_point()]
    if not waiting or not names:
        return dict(outs)
    known = _Tied.apply(name, len(names), *(outs[n] for n in names), *waiting)  # type: ignore[no-untyped-call]
    return {**outs, **dict(zip(names, known, strict=True))}


def _rows(xs: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """So many stretches of the same length."""
    each = len(xs) // count
    return [xs[k * each : (k + 1) * each] for k in range(count)]


class _Last(torch.autograd.Function):
    """Gradients as they are, which have none themselves. A second backward meets it before any exchange, on every device."""

    @staticmethod
    def forward(ctx: Any, name: str, anchor: torch.Tensor, *gs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.name = name
        return tuple(g.view_as(g) for g in gs)

    @staticmethod
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[None, ...]:
        raise NotImplementedError(
            f"{ctx.name}: the gradient of an attention over devices has no derivative; take it of the attention on one device"
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
        last = iter(_Last.apply(ctx.name, anchor, *(x for x in found if isinstance(x, torch.Tensor))))  # type: ignore[no-untyped-call]
        return tuple(next(last) if isinstance(x, torch.Tensor) else x for x in found)

    return inside


class _Left(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: _Way, *given: torch.Tensor) -> torch.Tensor:
        """A token of no numbers."""
        count = len(way.along) * way.parts
        xs, needs = _rows(given[:count], way.parts), _rows(ctx.needs_input_grad[1 : 1 + count], way.parts)
        every = range(len(way.along))
        way.wanted = [n for n in every if (xs[0][n].is_floating_point() if way.anchored else any(own[n] for own in needs))]
        way.shapes = [[own[n].shape for n in way.wanted] for own in xs]
        way.there = routes.there(way.transport, way.name, xs, way.along)
        ctx.way, ctx.name, ctx.count, ctx.anchors = way, way.name, len(every), len(given) - count
        return given[0].new_empty(0, dtype=torch.float32)

    @staticmethod
    @_no_further
    def backward(ctx: Any, token: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        arrival, ctx.way.back = ctx.way.back, None
        by = [dict(zip(ctx.way.wanted, own, strict=True)) for own in arrival()]
        return (None, *(own.get(n) for own in by for n in range(ctx.count)), *[None] * ctx.anchors)


class _Arrived(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, way: _Way, token: torch.Tensor) -> tuple[torch.Tensor, ...]:
        arrival, way.there = way.there, None  # what was sent need not live any longer
        assert arrival is not None, "it is waited for once"
        outs, ctx.way, ctx.name = arrival(), way, way.name
        ctx.mark_non_differentiable(*(y for own in outs for y in own if not y.is_floating_point()))
        return tuple(y for own in outs for y in own)

    @staticmethod
    @_no_further
    def backward(ctx: Any, *given: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        way: _Way = ctx.way
        gs = [[own[n] for n in way.wanted] for own in _rows(given, way.parts)]
        way.back = routes.back(way.transport, way.name, gs, [way.along[n] for n in way.wanted], way.shapes)
        return None, torch.empty(0, device=given[0].device)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, turned: Turned, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outs = [x for own in turned.outs for x in own.values()]
        kept = [x for own in turned.kept for x in own.values()]
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(*(x for x in outs if not x.is_floating_point()))
        ctx.name, ctx.backward_of = turned.name, turned.backward
        ctx.names = [[*turned.outs[0]], [*turned.kept[0]], [*turned.inputs[0]]]
        return tuple(outs)

    @staticmethod
    @_no_further
    def backward(ctx: Any, *directions: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        outs, kept, inputs = ctx.names
        count = len(directions) // len(outs)
        known = [dict(zip(kept, own, strict=True)) for own in _rows(ctx.saved_tensors, count)]
        given = [dict(zip(outs, own, strict=True)) for own in _rows(directions, count)]
        return (None, *(found[n] for found in ctx.backward_of(known, given) for n in inputs))


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
    def forward(ctx: Any, name: str, first: bool, x: torch.Tensor) -> torch.Tensor:
        ctx.name, ctx.first = name, first
        return x.view_as(x)

    @staticmethod
    @_no_further
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[None, None, torch.Tensor]:
        (g,) = gs
        return None, None, g if ctx.first else torch.zeros_like(g)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, count: int, *xs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.name = name
        ctx.rest = [(x.shape, x.dtype, x.device) for x in xs[count:]]
        return tuple(x.view_as(x) for x in xs[:count])

    @staticmethod
    @_no_further
    def backward(ctx: Any, *gs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (None, None, *gs, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.rest))
