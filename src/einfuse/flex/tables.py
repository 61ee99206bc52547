"""Captured tensors: how a trace reads them, and what it has to know of what they hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from einfuse.flex.arithmetic import fitted
from einfuse.flex.bounds import CONDITION, UNKNOWN, Bounds
from einfuse.flex.value import Part, Value
from einfuse.ir import Expr, call, const, index, load, size
from einfuse.runtime.capture import capturing
from einfuse.runtime.recent import Recent
from einfuse.runtime.unchanged import holder, place, told

if TYPE_CHECKING:
    from einfuse.flex.tracer import Tracer

READABLE = (
    *(torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16),
)
LEAST = -3.0e38
"""Below every score that is not minus infinity."""


@dataclass(slots=True)
class Captured:
    """A captured tensor, as an input: its name, what it holds, and the size of every axis."""

    name: str
    tensor: torch.Tensor
    axes: list[Expr]


# -- reading -------------------------------------------------------------------------------------------------------------------


def read(t: Tracer, tensor: torch.Tensor, indices: Sequence[Any]) -> Value | Part:
    """``tensor[indices]``, of which at least one is symbolic or none is there."""
    tensor, found = _view(t, tensor, list(indices))
    if len(found) > tensor.ndim:
        t.refuse(f"{len(found)} indices for a captured tensor of {tensor.ndim} axes, shape {tuple(tensor.shape)}")
    left = tensor.shape[len(found) :]
    if len(left) > 1:
        return Part(t, tensor, tuple(found))
    axis = t.common_axis(*found)
    if left:
        if axis is not None:
            t.refuse("a vector of indices picks vectors", "index every axis of the tensor")
        axis = t.axis(left[0])
        found.append(Value(t, index(axis), torch.int64, axis, bounds=(0, left[0] - 1)))
    captured = _captured(t, tensor)
    for n, i in enumerate(found):
        _size_of(t, captured, n, i.expr)
    expr = load(captured.name, *(i.expr for i in found))
    held = contents(tensor, [i.bounds for i in found])
    dtype = t.dtype if tensor.is_floating_point() else tensor.dtype
    alive = call(">", expr, const(LEAST)) if held.minus_infinity else None
    nodes = t.within(1 + sum(i.nodes for i in found))
    return fitted(t, Value(t, expr, dtype, axis, alive, bounds=held.bounds, nodes=nodes))


def _view(t: Tracer, tensor: torch.Tensor, indices: list[Any]) -> tuple[torch.Tensor, list[Value]]:
    """Slices done for good, on a view; symbolic and plain indices as values, in order."""
    if Ellipsis in [i for i in indices if i is Ellipsis]:
        at = next(n for n, i in enumerate(indices) if i is Ellipsis)
        missing = tensor.ndim - (len(indices) - 1)
        indices[at : at + 1] = [slice(None)] * missing
    if any(i is None or isinstance(i, slice) for i in indices):
        keep = tuple(i if i is None or isinstance(i, slice) else slice(None) for i in indices)
        tensor = tensor[keep]
        whole = [n for n, i in enumerate(indices) if i is None or isinstance(i, slice)]
        rest = list(range(len(indices), tensor.ndim))
        picked = [n for n in range(len(indices)) if n not in whole]
        tensor = tensor.permute(*picked, *whole, *rest)
        indices = [indices[n] for n in picked]
    out = []
    for n, i in enumerate(indices):
        if type(i) is int and i < 0:
            i += tensor.shape[n]
        v = t.value(i)
        if v.kind != "int":
            t.refuse(f"index {n} is a {v.kind}, an integer is needed")
        out.append(v)
    return tensor, out


def _captured(t: Tracer, tensor: torch.Tensor) -> Captured:
    if id(tensor) not in t.tensors:
        if tensor.dtype not in READABLE:
            t.refuse(f"a captured tensor of {tensor.dtype} cannot be read", f"known: {', '.join(map(str, READABLE))}")
        if tensor.device != t.device and tensor.ndim:
            t.refuse(f"a captured tensor is on {tensor.device}, the scores are on {t.device}")
        name = t.input_name(t.captures.names.get(id(tensor), "") or "table")
        t.tensors[id(tensor)] = Captured(name, tensor, [size(f"{name}_size{n}") for n in range(tensor.ndim)])
    return t.tensors[id(tensor)]


def _size_of(t: Tracer, captured: Captured, n: int, i: Expr) -> None:
    """An axis read at a plain coordinate has the size of that coordinate, where it is so: no read can leave it then."""
    if i.op == "index" and captured.axes[n] == size(f"{captured.name}_size{n}"):
        extent, named = t.extent(i.name)
        if captured.tensor.shape[n] == extent:
            captured.axes[n] = named


# -- what they hold ------------------------------------------------------------------------------------------------------------


class Contents(NamedTuple):
    """Of a part of a tensor: the bounds of its numbers, and whether minus infinities are among them."""

    bounds: Bounds
    minus_infinity: bool = False


_KNOWN = WeakIdKeyDictionary()  # of the tensors that hold memory: by place of a view in it, what was found


def contents(x: torch.Tensor, at: Sequence[Bounds] = ()) -> Contents:
    """What a captured tensor holds where it is read, at indices between these bounds. A device is asked once for every version of it."""
    if x.dtype == torch.bool or x.device.type == "meta":
        return Contents(CONDITION if x.dtype == torch.bool else UNKNOWN)
    if capturing():  # what a graph is replayed with, nobody knows
        return Contents(UNKNOWN, x.is_floating_point())
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = bare(x)
    else:
        x = x[tuple(slice(*_span(b, n)) for b, n in zip(at, x.shape, strict=False))]
    now = place(x)
    if not told(now):
        return _look(x)
    known: Recent[tuple[object, ...], Contents] = _KNOWN.setdefault(holder(x), Recent(8))
    return known.made(now, lambda: _look(x))


def _span(b: Bounds, extent: int) -> tuple[int, int]:
    """The part of an axis between two indices: one that leaves it counts as the nearest, as in kernels."""
    first, last = (0 if b[0] < 0 else min(b[0], extent - 1)), (min(max(b[1], 0), extent - 1))
    return int(first), int(last) + 1


def _look(x: torch.Tensor) -> Contents:
    x = x.detach()
    if not x.numel():
        return Contents(UNKNOWN)
    low, high = torch.stack(torch.aminmax(x)).tolist()
    if not x.is_floating_point():
        return Contents((low, high))
    if math.isnan(low):
        return Contents(UNKNOWN, bool(torch.isneginf(x).any()))
    return Contents((low, high), low == -math.inf)


def bare(x: torch.Tensor) -> torch.Tensor:
    """Of what vmap maps over, all at once: a trace is one for all."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


class Same:
    """A tensor that equals those that hold the same."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return NotImplemented
        a, b = bare(self.tensor).detach(), bare(other.tensor).detach()
        if a is b or a.device.type == "meta" or (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()):
            return a.shape == b.shape
        return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())

    __hash__ = None  # type: ignore[assignment]  # what it holds may change
