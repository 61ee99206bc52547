"""`Attention.jvp`: outputs and tangents by one kernel, or by the interpreter where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Scalar
from einfuse.runtime import binding, ops, transforms
from einfuse.runtime.higher import longer

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention, Output

Tensors = Mapping[str, torch.Tensor]


def outputs(
    attention: Attention,
    args: Sequence[torch.Tensor],
    kwargs: Mapping[str, torch.Tensor | Scalar],
    tangents: Mapping[str, torch.Tensor],
) -> tuple[Output, Output]:
    """The outputs of a call, and their tangents: see `Attention.jvp`."""
    attention, kwargs = attention.variant(kwargs)
    tensors, numbers = binding.arguments(attention.cascade, args, kwargs)
    _check(attention, tensors, tangents)
    tensors, moves = binding.autocast(tensors), binding.autocast({n: tangents[n] for n in tensors if n in tangents})
    if attention.selection is not None:
        binding.one_dtype(attention.cascade, tensors)
        return attention.selection.jvp(tensors, numbers, moves)
    whole = _derived(attention, tuple(moves)) and attention.forward_modes[tuple(moves)]
    if not whole:
        return attention(**tensors, **numbers), _interpreted(attention, tensors, numbers, moves)
    binding.one_dtype(attention.cascade, tensors)
    names = [t.name for t in whole.cascade.inputs if not t.param][len(tensors) :]
    pairs = whole(**tensors, **dict(zip(names, moves.values(), strict=True)), **numbers)
    assert isinstance(pairs, tuple), "every output has a tangent"
    half = len(pairs) // 2
    return _output(pairs[:half]), _output(pairs[half:])


def _check(attention: Attention, tensors: Tensors, tangents: object) -> None:
    """Raises TypeError or ValueError for tangents of what has none, and for those that are not like their inputs."""
    floats = sorted(t.name for t in attention.cascade.inputs if t.dtype == "float" and not t.param)
    if not isinstance(tangents, Mapping):
        raise TypeError(
            f"{attention.name}: tangents must be a dictionary by name ({', '.join(floats)}), found {type(tangents).__name__}"
        )
    unknown = sorted(str(n) for n in tangents if n not in floats)
    if unknown or not tangents:
        raise TypeError(f"{attention.name}: tangents are for {', '.join(floats)}, found {', '.join(unknown) or 'none'}")
    for name, x in tangents.items():
        binding.like(f"{attention.name}: the tangent of {name}", x, tensors[name])


def _derived(attention: Attention, along: tuple[str, ...]) -> bool:
    """Leaves the attention that gives out tangents at the attention. torch.compile calls this, and does not trace it."""
    if along not in attention.forward_modes:
        found = transforms.tangent_of(attention.text, attention.backend or "", attention.strict, attention.wide, along)
        attention.forward_modes[along] = found
    return True


vars(_derived)["_dynamo_marked_constant"] = True  # as `torch.compiler.assume_constant_result`, which imports the compiler


def _interpreted(attention: Attention, tensors: Tensors, numbers: Mapping[str, Scalar], moves: Tensors) -> Output:
    """The tangents of the outputs, by torch's differentiation of the cascade."""
    order = longer("", "f", [n in moves for n in tensors])
    call = attention.operator_call(numbers)
    return _output(ops.derivative(*call, list(tensors.values()), list(moves.values()), order))


def _output(outs: Sequence[torch.Tensor]) -> Output:
    return outs[0] if len(outs) == 1 else tuple(outs)
