"""What a scalar tensor can be asked to become, and short vectors: what is left of a captured tensor when all axes but one are indexed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from einfuse.flex.arithmetic import (
    add,
    cast,
    compare,
    condition,
    divide,
    extreme,
    finite,
    integer_power,
    make,
    mul,
    operand,
    real,
    same_kind,
    unary,
)
from einfuse.flex.captures import READABLE, read
from einfuse.flex.functions import logical_not
from einfuse.flex.value import OPERATIONS, Part, Value, operation
from einfuse.ir import Einsum, Expr, const
from einfuse.ir import expr as ex

if TYPE_CHECKING:
    from einfuse.flex.tracer import Tracer

SHORT, LONGEST = 8, 64
"""The longest vectors whose reductions are written out, in scores and in masks: what is written out, the analysis of masks sees."""

# -- casts and constants -------------------------------------------------------------------------------------------------------


@operation("to", "type")
def _to(t: Tracer, x: Any, *args: Any, dtype: Any = None, **_: Any) -> Value:
    v = t.value(x)
    for a in args:
        dtype = a.dtype if isinstance(a, Value | torch.Tensor) else a if isinstance(a, torch.dtype) else dtype
    return v if dtype is None else _cast(t, v, dtype)


def _cast(t: Tracer, v: Value, dtype: torch.dtype) -> Value:
    if dtype not in READABLE:
        t.refuse(f"a number cannot be cast to {dtype}", f"known: {', '.join(map(str, READABLE))}")
    return v if v.alive is not None and dtype.is_floating_point else cast(t, operand(t, v), dtype)


for _name, _dtype in (
    *((name, torch.float32) for name in ("float", "double", "half", "bfloat16")),
    *(("long", torch.int64), ("int", torch.int32), ("short", torch.int16), ("char", torch.int8), ("byte", torch.uint8)),
    ("bool", torch.bool),
):
    OPERATIONS[_name] = partial(lambda t, x, dtype: _cast(t, t.value(x), dtype), dtype=_dtype)


operation("type_as")(lambda t, x, other: _cast(t, t.value(x), other.dtype))
operation("new_full", "full_like")(lambda t, x, *args, dtype=None, **_: _cast(t, t.value(args[-1]), dtype or x.dtype))


@operation("new_tensor")
def _new_tensor(t: Tracer, x: Any, data: Any, *, dtype: Any = None, **_: Any) -> Value:
    return t.value(data) if dtype is None else _cast(t, t.value(data), dtype)


def _constant(t: Tracer, like: Any, *shape: Any, size: Any = (), dtype: Any = None, fill: int, **_: Any) -> Value:
    wanted = size or (shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list | torch.Size) else shape)
    if any(n != 1 for n in wanted):
        t.refuse(f"a constant of shape {tuple(wanted)} cannot be traced", "make it outside of the function")
    return _cast(t, t.value(fill), dtype or like.dtype)


for _name, _fill in (("new_ones", 1), ("ones_like", 1), ("new_zeros", 0), ("zeros_like", 0)):
    OPERATIONS[_name] = partial(_constant, fill=_fill)


@operation("detach")
def _detach(t: Tracer, x: Any) -> Value:
    v = t.value(x)
    return make(t, "stop", v.dtype, finite(v), alive=v.alive, bounds=v.bounds) if v.kind == "float" else v


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


# -- vectors -------------------------------------------------------------------------------------------------------------------


@operation("getitem")
def _getitem(t: Tracer, x: Any, i: Any) -> Value | Part:
    if isinstance(x, Part):
        return read(t, x.tensor, (*x.indices, *(i if isinstance(i, tuple) else (i,))))
    v = t.value(x)
    if v.axis is None:
        t.refuse("a traced number cannot be indexed", t.tables)
    at = t.value(i + t.length(v.axis) if isinstance(i, int) and i < 0 else i)
    if at.kind != "int":
        t.refuse(f"an index is a {at.kind}, an integer is needed")
    return _at(t, v, at.expr, at.axis)


@operation("embedding")
def _embedding(
    t: Tracer,
    i: Any,
    weight: Any,
    padding_idx: Any = None,
    max_norm: Any = None,
    norm_type: Any = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Value | Part:
    if max_norm is not None:
        t.refuse("`embedding` with max_norm writes its table", "normalise the table outside of the function")
    if (padding_idx is not None or scale_grad_by_freq or sparse) and weight.requires_grad:
        t.refuse("`embedding` with a gradient of its own cannot be traced", "index the table: weight[i]")
    return read(t, weight, (i,))


@operation("take")
def _take(t: Tracer, x: Any, i: Any) -> Value | Part:
    return read(t, x.reshape(-1), (i,))


def _at(t: Tracer, v: Value, place: Expr, axis: str | None = None) -> Value:
    """A vector at a place of its own."""
    assert v.axis is not None, "a vector has a rank"
    alive = v.alive and ex.rename(v.alive, {v.axis: place})
    return Value(t, ex.rename(v.expr, {v.axis: place}), v.dtype, axis, alive, bounds=v.bounds, nodes=v.nodes)


def _vector(t: Tracer, name: str, x: Any, dim: Any) -> Value:
    v = operand(t, x)
    if v.axis is None:
        t.refuse(f"`{name}` of a single number", "only what is left of a captured tensor can be reduced")
    if dim not in (None, -1, 0, (-1,), (0,), [-1], [0]):
        t.refuse(f"`{name}` over the axis {dim} of a vector")
    return v


_COMBINE: dict[str, Callable[..., Value]] = {
    "sum": add,
    "prod": mul,
    "max": partial(lambda t, a, b: extreme(t, "max", a, b)),
    "min": partial(lambda t, a, b: extreme(t, "min", a, b)),
    "any": partial(lambda t, a, b: make(t, "or", torch.bool, a, b)),
}


def _reduced(t: Tracer, red: str, v: Value) -> Value:
    """A vector reduced over its rank: written out where it is short, and in masks; else a statement of its own."""
    if red in ("sum", "prod") and v.kind != "float":
        v = cast(t, v, torch.int64)
    assert v.axis is not None, "a vector has a rank"
    length = t.length(v.axis)
    if length <= (LONGEST if t.masking else SHORT):
        if not length:
            t.refuse(f"the {red} of nothing")
        return functools.reduce(partial(_COMBINE[red], t), [_at(t, v, const(n)) for n in range(length)])
    if t.masking:
        t.refuse(f"a mask reduces a vector of {length} numbers", f"at most {LONGEST} can be; make a table of the condition")
    mapped = v if red == "any" else real(t, v)
    ranks = tuple(r for r in ("i", "j") if r in ex.indices(mapped.expr) | _ranks_behind(t, mapped.expr))
    new = Einsum(f"part_{len(t.statements)}", ranks, red, (v.axis,), mapped.expr)
    same = next((s for s in t.statements if (s.ranks, s.red, s.over, s.map) == (ranks, red, new.over, new.map)), None)
    if same is None:
        t.statements.append(new)
    return cast(t, Value(t, ex.at((same or new).target, ranks), mapped.dtype), v.dtype)


def _ranks_behind(t: Tracer, e: Expr) -> set[str]:
    return {r for s in t.statements if s.target in ex.reads(e) for r in s.ranks}


@operation("sum")
def _sum(t: Tracer, x: Any, dim: Any = None, **_: Any) -> Value:
    return _reduced(t, "sum", _vector(t, "sum", x, dim))


@operation("mean")
def _mean(t: Tracer, x: Any, dim: Any = None, **_: Any) -> Value:
    v = real(t, _vector(t, "mean", x, dim))
    return divide(t, _reduced(t, "sum", v), t.length(v.axis or ""))


operation("prod")(lambda t, x, dim=None, **_: _reduced(t, "prod", _vector(t, "prod", x, dim)))


def _max_min(t: Tracer, x: Any, *args: Any, name: str, **kwargs: Any) -> Value:
    """Of two numbers, or of all of a vector."""
    if not args and not kwargs:
        return _reduced(t, name, _vector(t, name, x, None))
    if (len(args) == 1 and not isinstance(args[0], int | tuple)) or t.value(x).axis is None:
        return extreme(t, name, x, *args)
    t.refuse("`max` and `min` over an axis give indices as well, which cannot be traced", "use amax, amin, maximum or minimum")


for _name in ("max", "min"):
    OPERATIONS[_name] = partial(_max_min, name=_name)


operation("amax")(lambda t, x, *args, dim=None, **_: _reduced(t, "max", _vector(t, "amax", x, args[0] if args else dim)))
operation("amin")(lambda t, x, *args, dim=None, **_: _reduced(t, "min", _vector(t, "amin", x, args[0] if args else dim)))


@operation("isin")
def _isin(t: Tracer, x: Any, values: Any, *, assume_unique: bool = False, invert: bool = False) -> Value:
    found = compare(t, "==", _single(t, "isin", x), values)
    found = found if found.axis is None else _any(t, found)
    return logical_not(t, found) if invert else found


@operation("searchsorted")
def _searchsorted(
    t: Tracer,
    sorted_sequence: Any,
    x: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Any = None,
) -> Value:
    """The number of bounds that lie before ``x``."""
    if sorter is not None:
        t.refuse("`searchsorted` with a sorter cannot be traced", "sort the sequence outside of the function")
    if side == "left" and right:
        t.refuse("`searchsorted` is asked for the left side and the right one")
    after = right or side == "right"
    before = compare(
        t, "<=" if after else "<", _vector(t, "searchsorted", sorted_sequence, None), _single(t, "searchsorted", x)
    )
    return cast(t, _sum(t, before), torch.int32 if out_int32 else torch.int64)


@operation("bucketize")
def _bucketize(t: Tracer, x: Any, boundaries: Any, *, out_int32: bool = False, right: bool = False) -> Value:
    return _searchsorted(t, boundaries, x, out_int32=out_int32, right=right)


def _single(t: Tracer, name: str, x: Any) -> Value:
    """One number, that each of a vector is compared with."""
    v = operand(t, x)
    if v.axis is not None:
        t.refuse(f"`{name}` of a vector of numbers cannot be traced", "of one number it can")
    return v


@operation("any")
def _any(t: Tracer, x: Any, dim: Any = None, **_: Any) -> Value:
    return _reduced(t, "any", condition(t, _vector(t, "any", x, dim)))


operation("all")(lambda t, x, dim=None, **_: logical_not(t, _any(t, logical_not(t, x), dim)))


@operation("norm", "vector_norm", "linalg_vector_norm")
def _norm(t: Tracer, x: Any, ord: Any = 2, dim: Any = None, *, p: Any = None, **_: Any) -> Value:
    order = ord if p is None else p
    if order not in (1, 2, None):
        t.refuse(f"`norm` of order {order} cannot be traced", "orders 1 and 2 can")
    v = real(t, _vector(t, "norm", x, dim))
    if order == 1:
        return _reduced(t, "sum", same_kind(t, "abs", v))
    return unary(t, "sqrt", _reduced(t, "sum", integer_power(t, v, 2)))


@operation("dot", "vdot", "inner", "matmul")
def _dot(t: Tracer, a: Any, b: Any) -> Value:
    x, y = _vector(t, "dot", a, None), _vector(t, "dot", b, None)
    return _reduced(t, "sum", mul(t, x, y))
