"""What torch's vmap does with the operators: each runs its cascade with one more ambient rank (`ir.passes.batch`).

A rule is ``rule(size, call, dims, args)``: the extent of the new axis, the call, and for each argument after it where the axis is. All
results have it in front. Inputs that all points of the axis share stay as they are, but for those that get a gradient at each point.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._functorch.autograd_function import VmapInfo

from einfuse.ir.passes import batch
from einfuse.runtime import ops
from einfuse.runtime.apart import apart
from einfuse.runtime.ops import Call
from einfuse.runtime.recent import MOST
from einfuse.runtime.staged import StagedProgram

Tensors = Sequence[torch.Tensor]
_BATCHED = torch._C._dispatch_key_parse("Batched")


def register() -> None:
    """Registers every rule with its operator."""
    for name, rule in (("attention", _attention), ("forward", _forward), ("backward", _backward), ("derivative", _derivative)):
        whole = functools.partial(_ruled, rule)
        torch.library.register_vmap(f"einfuse::{name}", whole, lib=ops.LIBRARY)
        ops.LIBRARY.impl(name, functools.partial(_grads_batched, whole), "Batched")


def _ruled(rule: Callable[..., Tensors], info: Any, dims: tuple[Any, ...], *args: Any) -> tuple[Tensors, list[int]]:
    found = rule(info.batch_size, Call(*args[:6]), dims[6:], args[6:])
    return found, [0] * len(found)


def _grads_batched(whole: Callable[..., tuple[Tensors, list[int]]], *args: Any) -> list[torch.Tensor]:
    """The rule under the vmap of ``torch.autograd.grad(is_grads_batched=True)``, which is older than `torch.func` and has a key of its own."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()  # now the rule runs outside of this level
    torch._C._vmapmode_decrement_nesting()
    try:
        lists = {n: [_unbatched(x, level) for x in arg] for n, arg in enumerate(args) if _tensors(arg)}
        plain = [[x for x, _ in lists[n]] if n in lists else arg for n, arg in enumerate(args)]
        dims = tuple([d for _, d in lists[n]] if n in lists else None for n in range(len(args)))
        size = next(x.shape[0] for held in lists.values() for x, d in held if d is not None)
        found, _ = whole(VmapInfo(size, "error"), dims, *plain)
    finally:
        torch._C._vmapmode_increment_nesting()
    return [torch._add_batch_dim(x, 0, level) for x in found]


def _tensors(arg: Any) -> bool:
    return isinstance(arg, list | tuple) and len(arg) > 0 and isinstance(arg[0], torch.Tensor)


def _unbatched(x: torch.Tensor, level: int) -> tuple[torch.Tensor, int | None]:
    if not torch._C._dispatch_keys(x).has(_BATCHED):
        return x, None
    return torch._remove_batch_dim(x, level, 1, 0), 0


def _batched(call: Call, marked: Sequence[bool]) -> Call:
    """The call of the cascade with an axis more at the marked inputs."""
    names = [t.name for t in call.cascade.inputs if not t.param]
    return call._replace(
        spec=_batched_text(call.spec, call.strict, call.wide, tuple(n for n, m in zip(names, marked, strict=True) if m))
    )


@functools.lru_cache(MOST)
def _batched_text(spec: str, strict: bool, wide: bool, inputs: tuple[str, ...]) -> str:
    cascade = Call(spec, "", strict, wide, None, None).cascade
    return apart(lambda: ops.register(batch.run(cascade, inputs), strict, wide)[0])


def _fronted(size: int, tensors: Tensors, dims: Sequence[int | None], marked: Sequence[bool]) -> list[torch.Tensor]:
    """The tensors with the axis in front where they are marked: moved there, or of stride 0."""
    out = []
    for x, dim, m in zip(tensors, dims, marked, strict=True):
        out.append(x if not m else x.movedim(dim, 0) if dim is not None else x.expand(size, *x.shape))
    return out


def _all(size: int, tensors: Tensors, dims: Sequence[int | None] | None) -> list[torch.Tensor]:
    return _fronted(size, tensors, dims or [None] * len(tensors), [True] * len(tensors))


def _dims(tensors: Tensors, dims: Sequence[int | None] | None) -> Sequence[int | None]:
    return [None] * len(tensors) if dims is None else dims


def _attention(size: int, call: Call, dims: Any, args: Any) -> list[torch.Tensor]:
    marked = [d is not None for d in dims[0]]
    return ops.attention(*_batched(call, marked), _fronted(size, args[0], dims[0], marked))  # type: ignore[no-any-return]  # as above


def _forward(size: int, call: Call, dims: Any, args: Any) -> list[torch.Tensor]:
    tensors, needs = args
    marked = [d is not None for d in dims[0]]
    found = ops.forward(*_batched(call, marked), _fronted(size, tensors, dims[0], marked), needs)
    points = [x if d is None else x.select(d, 0) for x, d in zip(tensors, dims[0], strict=True)]
    axes = _axes(call, points, needs)
    if axes is None:
        return found  # type: ignore[no-any-return]  # as above
    return [x if x.ndim > n else x.expand(size, *x.shape) for x, n in zip(found, axes, strict=True)]


def _backward(size: int, call: Call, dims: Any, args: Any) -> list[torch.Tensor]:
    tensors, needs, saved, gradients = args
    held = _dims(tensors, dims[0])
    marked = [d is not None or n for d, n in zip(held, needs, strict=True)]  # a gradient for each, of what all share too
    whole, every = _batched(call, marked), _fronted(size, tensors, held, marked)
    kept, axes = _all(size, saved, dims[2]), _axes(whole, every, needs)
    if axes is not None:  # what a stage makes of inputs that all points share has no axis for them, and is the same for each
        kept = [x if x.ndim == n else x.select(0, 0) for x, n in zip(kept, axes, strict=True)]
    return ops.backward(*whole, every, needs, kept, _all(size, gradients, dims[3]))  # type: ignore[no-any-return]  # as above


def _axes(call: Call, tensors: Tensors, needs: Sequence[bool]) -> list[int] | None:
    """The number of axes of all that a forward of several stages gives out; None of one stage: there all have the new axis."""
    if not isinstance(call.program, StagedProgram):
        return None
    return [len(out.shape) for out in call.program.gives(call.given(tensors), call.wanted(needs)).values()]


def _derivative(size: int, call: Call, dims: Any, args: Any) -> list[torch.Tensor]:
    tensors, directions, order = args
    held = _dims(tensors, dims[0])
    marked = [d is not None or f for d, f in zip(held, call.differentiable, strict=True)]
    return ops.derivative(  # type: ignore[no-any-return]  # as above
        *_batched(call, marked), _fronted(size, tensors, held, marked), _all(size, directions, dims[1]), order
    )
