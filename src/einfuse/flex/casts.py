"""Types and constants: what a scalar tensor can be asked to become."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from einfuse.flex.arithmetic import (
    condition,
    make,
    number,
    real,
)
from einfuse.flex.pointwise import trunc
from einfuse.flex.registry import OPERATIONS, operation
from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Value


@operation("to", "type")
def _to(t: Tracer, x: Any, *args: Any, dtype: Any = None, **_: Any) -> Value:
    v = t.value(x)
    for a in args:
        dtype = a.dtype if isinstance(a, Value | torch.Tensor) else a if isinstance(a, torch.dtype) else dtype
    return v if dtype is None else _cast(t, v, dtype)


def _cast(t: Tracer, v: Value, dtype: torch.dtype) -> Value:
    if dtype == torch.bool:
        return condition(t, v)
    if dtype.is_floating_point:
        return v if v.kind == "float" else real(t, v)
    if dtype not in (torch.int64, torch.int32):
        t.refuse(f"a number cannot be cast to {dtype}", "use int32 or int64")
    n = number(t, v)
    return n if n.kind == "int" else make(t, "int", "int", trunc(t, n))


for _name, _dtype in (
    *((name, torch.float32) for name in ("float", "double", "half", "bfloat16")),
    *(("int", torch.int64), ("long", torch.int64), ("bool", torch.bool)),
):
    OPERATIONS[_name] = partial(lambda t, x, dtype: _cast(t, t.value(x), dtype), dtype=_dtype)


@operation("type_as")
def _type_as(t: Tracer, x: Any, other: Any) -> Value:
    return _cast(t, t.value(x), other.dtype)


@operation("new_full", "full_like")
def _new_full(t: Tracer, x: Any, *args: Any, dtype: Any = None, **_: Any) -> Value:
    made = t.value(args[-1])
    return made if dtype is None else _cast(t, made, dtype)


@operation("new_tensor")
def _new_tensor(t: Tracer, x: Any, data: Any, *, dtype: Any = None, **_: Any) -> Value:
    return t.value(data) if dtype is None else _cast(t, t.value(data), dtype)


def _constant(t: Tracer, like: Any, *shape: Any, size: Any = (), dtype: Any = None, fill: int, **_: Any) -> Value:
    wanted = size or (shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list | torch.Size) else shape)
    if any(n != 1 for n in wanted):
        t.refuse(f"a constant of shape {tuple(wanted)} cannot be traced", "make it outside of the function")
    kind = dtype or t.value(like).dtype
    return _cast(t, t.value(fill), kind)


for _name, _fill in (("new_ones", 1), ("ones_like", 1), ("new_zeros", 0), ("zeros_like", 0)):
    OPERATIONS[_name] = partial(_constant, fill=_fill)


@operation("detach")
def _detach(t: Tracer, x: Any) -> Value:
    v = t.value(x)
    if v.kind == "float":
        t.refuse("`detach` of a float cannot be traced", "detach the captured tensor outside of the function")
    return v


@operation("unsqueeze")
def _unsqueeze(t: Tracer, x: Any, dim: int) -> Value:
    """A number as a vector of one, which meets any vector."""
    v = t.value(x)
    if v.axis is not None or dim not in (0, -1):
        t.refuse("`unsqueeze` of a vector cannot be traced")
    return v


@operation("squeeze", "view", "reshape", "flatten", "expand", "item", "requires_grad_")
def _shape(t: Tracer, x: Any, *_: Any, **__: Any) -> Value:
    t.refuse("a traced number has no shape to change", "a score is one number")
