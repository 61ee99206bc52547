"""The two operators that torch sees: forward and backward of any compiled attention, with fake kernels and autograd.

A program is found by key, a content hash, so that graphs captured by torch.compile or torch.export name it stably. Host numbers
travel as lists of ints and floats in the order of the cascade's parameters, tensors in the order of its inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from einfuse.ir import EinfuseError, Scalar, interpret
from einfuse.runtime.backends import Backend, choose
from einfuse.runtime.given import Given
from einfuse.runtime.program import Program

_PROGRAMS: dict[str, Program] = {}  # for ever: a captured graph may outlive the object it was captured from


def register(key: str, program: Program) -> Program:
    """The program known by ``key`` (the given one, if there was none)."""
    return _PROGRAMS.setdefault(key, program)


def _program(key: str) -> Program:
    """The program of a captured graph. Raises EinfuseError where this process has not compiled its spec."""
    if key not in _PROGRAMS:
        raise EinfuseError(
            f"no attention with the key {key} is compiled in this process: compile its spec before running the graph"
        )
    return _PROGRAMS[key]


def _suited(key: str, backend: str, tensors: Sequence[torch.Tensor]) -> tuple[Program, Backend]:
    """The program that a call of a captured graph takes, and the back end it runs on."""
    chosen = choose(tensors[0].device, backend or None)  # type: ignore[arg-type]  # checked by `choose`
    narrow = any(x.dtype in (torch.bfloat16, torch.float16) for x in tensors)
    return _program(key).suited(chosen.name, narrow), chosen


def _given(program: Program, tensors: Sequence[torch.Tensor], ints: Sequence[int], floats: Sequence[float]) -> Given:
    c = program.cascade
    names = [t.name for t in c.inputs if not t.param]
    numbers: dict[str, Scalar] = {}
    for kind, values in (("int", ints), ("float", floats)):
        numbers |= dict(zip([t.name for t in c.inputs if t.param and t.dtype == kind], values, strict=True))
    return Given.of(c, dict(zip(names, tensors, strict=True)), numbers)


def _wanted(program: Program, needs: Sequence[bool]) -> tuple[str, ...]:
    inputs = [t for t in program.cascade.inputs if not t.param]
    return tuple(t.name for t, need in zip(inputs, needs, strict=True) if need and t.dtype == "float")


def _as_given(tensors: Sequence[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
    """Inside an operator dtypes are chosen already: autocast, which also looks into its body, would round sums between two kernels."""
    device = tensors[0].device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext()


@torch.library.custom_op("einfuse::forward", mutates_args=())
def forward(
    key: str, backend: str, tensors: Sequence[torch.Tensor], ints: Sequence[int], floats: Sequence[float], needs: Sequence[bool]
) -> list[torch.Tensor]:
    """The outputs of a program, then what its backward (for the tensors marked in ``needs``) will read."""
    program, chosen = _suited(key, backend, tensors)
    with _as_given(tensors):
        return list(program.forward(_given(program, tensors, ints, floats), chosen, _wanted(program, needs)).values())


@forward.register_fake
def _(
    key: str, backend: str, tensors: Sequence[torch.Tensor], ints: Sequence[int], floats: Sequence[float], needs: Sequence[bool]
) -> list[torch.Tensor]:
    program, _ = _suited(key, backend, tensors)
    given = _given(program, tensors, ints, floats)
    return list(program.allocate(program.saving(_wanted(program, needs)), given.tensors, given.sizes).values())


@torch.library.custom_op("einfuse::backward", mutates_args=())
def backward(
    key: str,
    backend: str,
    tensors: Sequence[torch.Tensor],
    outs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    """The gradients of the tensors marked in ``needs``, given everything that `forward` returned."""
    program, chosen = _suited(key, backend, tensors)
    given = _given(program, tensors, ints, floats)
    wanted = _wanted(program, needs)
    saved = dict(zip(program.saving(wanted).outs, outs, strict=True))
    directions = dict(zip(program.cascade.outs, gradients, strict=True))
    with _as_given(tensors):
        return list(program.backward(given, saved, directions, chosen, wanted).values())


@backward.register_fake
def _(
    key: str,
    backend: str,
    tensors: Sequence[torch.Tensor],
    outs: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    ints: Sequence[int],
    floats: Sequence[float],
    needs: Sequence[bool],
) -> list[torch.Tensor]:
    program = _program(key)
    wanted = _wanted(program, needs)
    names = [t.name for t in program.cascade.inputs if not t.param]
    return [
        torch.empty_like(x, memory_format=torch.contiguous_format) for n, x in zip(names, tensors, strict=True) if n in wanted
    ]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    key, backend, tensors, ints, floats, needs = inputs
    ctx.key, ctx.backend, ctx.ints, ctx.floats, ctx.needs = key, backend, ints, floats, needs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *output)


def _again(ctx: Any, gradients: list[torch.Tensor | None]) -> tuple[Any, ...]:
    """The gradient of a gradient: through the interpreter of the cascade as written, which autograd differentiates any number of times.

    Right for every cascade, and as slow and large as plain torch.
    """
    program, saved = _program(ctx.key), ctx.saved_tensors
    tensors, given = saved[: ctx.count], saved[ctx.count :]
    names = [t.name for t in program.cascade.inputs if not t.param]
    wanted = [n in _wanted(program, ctx.needs) for n in names]
    with torch.enable_grad(), _as_given(tensors):
        leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in tensors]
        directions = [g.detach().requires_grad_() for g in given]
        again = _given(program, leaves, ctx.ints, ctx.floats)
        dtype = torch.promote_types(directions[0].dtype, torch.float32)
        outs = interpret(program.cascade, again.inputs, again.sizes, dtype)
        inner = [x for x, w in zip(leaves, wanted, strict=True) if w]
        first = torch.autograd.grad(
            list(outs.values()), inner, [g.to(dtype) for g in directions], create_graph=True, allow_unused=True
        )
        pairs = [
            (f, g.to(f.dtype))
            for f, g in zip(first, gradients, strict=True)
            if f is not None and g is not None and f.requires_grad
        ]
        sources = [x for x in leaves if x.requires_grad] + directions
        if not pairs:
            second: tuple[torch.Tensor | None, ...] = (None,) * len(sources)
        else:
            second = torch.autograd.grad([f for f, _ in pairs], sources, [g for _, g in pairs], allow_unused=True)
    found = iter(second)
    to_tensors = [next(found) if x.requires_grad else None for x in leaves]
    to_given = list(found)
    return (None, None, to_tensors, [None] * ctx.outs, to_given, *([] if not n else None for n in (ctx.ints, ctx.floats)), None)


def _setup_again(ctx: Any, inputs: tuple[Any, ...], output: list[torch.Tensor]) -> None:
    key, _, tensors, outs, gradients, ints, floats, needs = inputs
    ctx.key, ctx.ints, ctx.floats, ctx.needs = key, ints, floats, needs
    ctx.count, ctx.outs = len(tensors), len(outs)
    ctx.save_for_backward(*tensors, *gradients)


backward.register_autograd(_again, setup_context=_setup_again)


def _backward(ctx: Any, gradients: list[torch.Tensor | None]) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    tensors, outs = list(saved[: ctx.count]), list(saved[ctx.count :])
    public = len(_program(ctx.key).cascade.outs)
    given = [torch.zeros_like(o) if g is None else g for g, o in zip(gradients[:public], outs[:public], strict=True)]
    parts = iter(backward(ctx.key, ctx.backend, tensors, outs, given, ctx.ints, ctx.floats, ctx.needs))
    inputs = [t for t in _program(ctx.key).cascade.inputs if not t.param]
    out = [next(parts) if need and t.dtype == "float" else None for t, need in zip(inputs, ctx.needs, strict=True)]
    # torch takes an empty list for a list of tensors, and wants one back
    return None, None, out, *([] if not numbers else None for numbers in (ctx.ints, ctx.floats)), None


forward.register_autograd(_backward, setup_context=_setup)
