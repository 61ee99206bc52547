"""What torch's autograd and transforms (`torch.func`, forward-mode derivatives, vmap) do with the operators of `einfuse.runtime.ops`.

Every rule gives an operator of the same family, so transforms nest in any order:

    operator     reverse mode                      forward mode                   vmap
    attention    backward, behind a forward        attention of the tangent's     attention of the batched cascade
                 that saves what it reads          cascade, or a derivative
    forward      backward                          as attention                   forward of the batched cascade
    backward     derivative                        derivative                     backward of the batched cascade
    derivative   the derivative one order higher, in either mode                  derivative of the batched cascade

The rules for autograd are kernels of the dispatcher, each for one level of transforms. (`torch.library.register_autograd` makes such
kernels too, but they have no forward mode and refuse transforms.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._compile import _disable_dynamo
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from einfuse.ir import Flat, SpecError
from einfuse.ir.passes import tangent
from einfuse.runtime import ops, vmap
from einfuse.runtime.apart import apart, transformed
from einfuse.runtime.higher import longer
from einfuse.runtime.ops import Call
from einfuse.runtime.recent import MOST

Tensors = Sequence[torch.Tensor]
Gradients = tuple[torch.Tensor | None, ...]


def _below(operator: Any, *args: Any) -> list[torch.Tensor]:
    """What an operator gives out without a record of it at this level of transforms; the levels outside of this one keep theirs."""
    with torch._C._AutoDispatchBelowAutograd():
        if torch._C._functorch.peek_interpreter_stack() is None:
            return operator(*args)  # type: ignore[no-any-return]  # the operators give lists of tensors
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):  # a node turns both off for all levels
            return operator(*args)  # type: ignore[no-any-return]  # the operators give lists of tensors


def _recorded(tensors: Tensors) -> bool:
    """Whether a derivative along one of these tensors may be asked for."""
    if transformed() and torch._C._is_fwd_grad_enabled():
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _spread(found: Sequence[torch.Tensor], marked: Sequence[bool]) -> Gradients:
    """One for each mark: the next of those found, or None."""
    rest = iter(found)
    return tuple(next(rest) if m else None for m in marked)


class _Attention(_SingleLevelFunction):
    """`attention`, or with ``needs`` of an outer level of transforms `forward`, whose further outputs have no derivative of their own."""

    @staticmethod
    def forward(ctx: Any, call: Call, needs: Sequence[bool] | None, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.call = call
        ctx.needs = [a and b for a, b in zip(ctx.needs_input_grad[2:], call.differentiable, strict=True)]
        ctx.public = len(call.cascade.outs)
        if needs is None:
            saved = _below(ops.forward, *call, tensors, ctx.needs) if any(ctx.needs) else _below(ops.attention, *call, tensors)
            outs = saved[: ctx.public]
        else:
            saved = outs = _below(ops.forward, *call, tensors, needs)
            ctx.mark_non_differentiable(*outs[ctx.public :])
        ctx.hidden = len(outs) - ctx.public
        ctx.moving = [x.is_floating_point() for x in outs[: ctx.public]]  # ints and truth values have no tangents
        ctx.own = needs is None or list(needs) == ctx.needs  # what this level's own backward reads is among the outputs
        ctx.save_for_backward(*tensors, *(saved if ctx.own else ()))
        ctx.save_for_forward(*tensors)
        ctx.count = len(tensors)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        held = ctx.saved_tensors  # asked for once: checkpointing computes them again, and only once
        tensors, saved = held[: ctx.count], held[ctx.count :]
        if not ctx.own:
            saved = ops.forward(*ctx.call, tensors, ctx.needs)
        found = ops.backward(*ctx.call, tensors, ctx.needs, saved, gradients[: ctx.public])
        return (None, None, *_spread(found, ctx.needs))

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> Gradients:
        tensors = ctx.saved_tensors[: ctx.count]
        moved = _along(ctx.call, tensors, tangents[2:])
        return (*(x if moves else None for x, moves in zip(moved, ctx.moving, strict=True)), *[None] * ctx.hidden)


def _along(call: Call, tensors: Tensors, tangents: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """The tangents of the outputs: by the kernel of the tangent's cascade, or by the interpreter where there is none."""
    marked = [t is not None and f for t, f in zip(tangents, call.differentiable, strict=True)]
    directions = [t for t, m in zip(tangents, marked, strict=True) if t is not None and m]
    names = [t.name for t in call.cascade.inputs if not t.param]
    whole = tangent_of(
        call.spec, call.backend, call.strict, call.wide, tuple(n for n, m in zip(names, marked, strict=True) if m)
    )
    if whole is None:
        return ops.derivative(*call, tensors, directions, longer("", "f", marked))  # type: ignore[no-any-return]  # as above
    numbers = call.given(tensors).numbers
    outs = whole(*tensors, *directions, **numbers)
    return list(outs[len(outs) // 2 :])


@functools.lru_cache(MOST)
def tangent_of(spec: str, backend: str, strict: bool, wide: bool, along: tuple[str, ...]) -> Any:
    """The attention that gives out the tangents, behind the outputs; None for a scan, and where a reducer has no derivative."""
    from einfuse.runtime.attention import Attention

    cascade = Call(spec, backend, strict, wide, None, None).cascade
    if not isinstance(cascade, Flat):
        return None

    def derived() -> Attention | None:
        try:
            found = tangent.run(cascade, along)
        except SpecError:
            return None
        return Attention(found, backend or None, strict, wide=wide, form="quadratic", inner=True)  # type: ignore[arg-type]  # checked by `choose`

    return apart(derived)


class _Backward(_SingleLevelFunction):
    """`backward`. What was saved is a function of the tensors, whose derivatives are taken of the call as a whole."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, needs: Sequence[bool], saved: Tensors, count: int, *args: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        tensors, gradients = args[:count], args[count:]
        ctx.call, ctx.count = call, count
        marked = [a and b for a, b in zip(needs, call.differentiable, strict=True)]
        ctx.order = longer("", "r", marked)
        ctx.save_for_backward(*args)
        ctx.save_for_forward(*args)
        return tuple(_below(ops.backward, *call, tensors, needs, saved, gradients))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        return (None, None, None, None, *_higher(ctx, "r", ctx.needs_input_grad[4:], gradients))

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> Gradients:
        return _higher_along(ctx, tangents[4:])


class _Derivative(_SingleLevelFunction):
    """`derivative`, and the one of an order higher."""

    @staticmethod
    def forward(ctx: Any, call: Call, order: str, count: int, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.call, ctx.order, ctx.count = call, order, count
        ctx.save_for_backward(*args)
        ctx.save_for_forward(*args)
        return tuple(_below(ops.derivative, *call, args[:count], args[count:], order))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Gradients:
        return (None, None, None, *_higher(ctx, "r", ctx.needs_input_grad[3:], gradients))

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> Gradients:
        return _higher_along(ctx, tangents[3:])


def _higher(ctx: Any, mode: str, marked: Sequence[bool], more: Tensors) -> Gradients:
    """The derivative of one order more along the marked arguments of a node."""
    args = ctx.saved_tensors
    marked = [m and x.is_floating_point() for m, x in zip(marked, args, strict=True)]
    tensors, directions = args[: ctx.count], [*args[ctx.count :], *more]
    found = ops.derivative(*ctx.call, tensors, directions, longer(ctx.order, mode, marked))
    return _spread(found, marked) if mode == "r" else tuple(found)


def _higher_along(ctx: Any, tangents: Sequence[torch.Tensor | None]) -> Gradients:
    return _higher(ctx, "f", [t is not None for t in tangents], [t for t in tangents if t is not None])


def _applied(function: Any, *args: Any) -> list[torch.Tensor]:
    with enable_single_level_autograd_function():
        return list(function.apply(*args))


def _autograd(name: str) -> Callable[[Callable[..., list[torch.Tensor]]], None]:
    """Registers what an operator does above its kernel."""

    def register(rule: Callable[..., list[torch.Tensor]]) -> None:
        ops.LIBRARY.impl(name, _disable_dynamo(rule), "Autograd")

    return register


@_autograd("attention")
def _(*args: Any) -> list[torch.Tensor]:
    call, tensors = Call(*args[:6]), args[6]
    return _applied(_Attention, call, None, *tensors) if _recorded(tensors) else _below(ops.attention, *args)


@_autograd("forward")
def _(*args: Any) -> list[torch.Tensor]:
    call, (tensors, needs) = Call(*args[:6]), args[6:]
    return _applied(_Attention, call, needs, *tensors) if _recorded(tensors) else _below(ops.forward, *args)


@_autograd("backward")
def _(*args: Any) -> list[torch.Tensor]:
    call, (tensors, needs, saved, gradients) = Call(*args[:6]), args[6:]
    every = (*tensors, *gradients)
    if not _recorded(every):
        return _below(ops.backward, *args)
    return _applied(_Backward, call, needs, saved, len(tensors), *every)


@_autograd("derivative")
def _(*args: Any) -> list[torch.Tensor]:
    call, (tensors, directions, order) = Call(*args[:6]), args[6:]
    every = (*tensors, *directions)
    return _applied(_Derivative, call, order, len(tensors), *every) if _recorded(every) else _below(ops.derivative, *args)


vmap.register()
attention = ops.attention
"""The operator that a call goes through, with the rules of this module."""
