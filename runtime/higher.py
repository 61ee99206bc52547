"""Derivatives of any order of a cascade, by torch's own differentiation of the interpreter.

An order is a word of steps such as ``r110,f0011``. It starts from the function of a call's tensors to its outputs; every step makes
the next function:

    r<bits>   reverse mode: arguments, and a gradient for each result -> the gradients of the marked arguments
    f<bits>   forward mode: arguments, and a tangent for each marked argument -> the tangents of the results

A derivative of one of these functions is one of these functions, so no order is the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from einfuse.ir import Cascade, interpret
from einfuse.runtime.given import Given

Function = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
Kind = tuple[torch.Size, torch.dtype]


def step(mode: str, marked: Sequence[bool]) -> str:
    """One step of an order: ``mode`` is ``r`` or ``f``."""
    return mode + "".join("01"[x] for x in marked)


def longer(order: str, mode: str, marked: Sequence[bool]) -> str:
    """The order after one more step."""
    return ",".join([*filter(None, [order]), step(mode, marked)])


def derivative(
    cascade: Cascade, given: Given, outs: Sequence[Kind], directions: Sequence[torch.Tensor], order: str
) -> list[torch.Tensor]:
    """The results of the function that ``order`` makes of a call. ``outs`` are shape and dtype of the call's outputs."""
    names = list(given.tensors)
    wide = torch.promote_types(outs[0][1], torch.float32)

    def call(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        now = Given(dict(zip(names, tensors, strict=True)), given.numbers, given.sizes)
        found = interpret(cascade, now.inputs, now.sizes, wide)
        return [found[n].to(dtype) for n, (_, dtype) in zip(cascade.outs, outs, strict=True)]

    function: Function = call
    for each in order.split(","):
        function = _differentiated(function, each[0], [x == "1" for x in each[1:]])
    with _recording(), torch.enable_grad():
        found = function([*given.tensors.values(), *directions])
        return [x.detach().clone(memory_format=torch.contiguous_format) for x in found]


def _differentiated(function: Function, mode: str, marked: Sequence[bool]) -> Function:
    def run(arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        points, along = list(arguments[: len(marked)]), arguments[len(marked) :]
        points = [_point(x) if m else x for x, m in zip(points, marked, strict=True)]
        chosen = [x for x, m in zip(points, marked, strict=True) if m]
        results = function(points)
        if mode == "r":
            return _pulled(results, chosen, along)
        weights = [
            torch.zeros_like(x).requires_grad_() for x in results
        ]  # what gradients are linear in: its derivative is the forward mode
        return _pulled(_pulled(results, chosen, weights), weights, along)

    return run


def _point(x: torch.Tensor) -> torch.Tensor:
    """The tensor as one that results are differentiated by, also where it is computed from others that they are differentiated by too."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _pulled(
    results: Sequence[torch.Tensor], points: Sequence[torch.Tensor], along: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The gradients at the points, 0 where no result depends on one; themselves differentiable."""
    pairs = [(x, g) for x, g in zip(results, along, strict=True) if x.requires_grad]
    if not pairs or not points:
        return [torch.zeros_like(x) for x in points]
    found = torch.autograd.grad([x for x, _ in pairs], points, [g for _, g in pairs], create_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, points, strict=True)]


def like(
    tensors: Sequence[torch.Tensor], outs: Sequence[torch.Tensor], directions: Sequence[torch.Tensor], order: str
) -> list[torch.Tensor]:
    """Tensors like the results of the function that ``order`` makes, from some like the arguments and the outputs of the call."""
    arguments, results = [*tensors, *directions], list(outs)
    for each in order.split(","):
        if each[0] == "r":
            results = [x for x, m in zip(arguments, each[1:], strict=False) if m == "1"]
    return results


def _recording() -> torch._C._ForceDispatchKeyGuard:
    """Dispatch as outside of all operators: autograd, which an operator's kernel runs below, has a say again."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in (torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.AutogradOther):
        exclude = exclude.remove(key)
    return torch._C._ForceDispatchKeyGuard(include, exclude)
