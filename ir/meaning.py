"""What the functions and the reductions of the IR mean, on torch tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from einfuse.ir.functions import FUNCTIONS


def _floor_divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode="floor")


def _number(a: Tensor) -> Tensor:
    return a if a.is_floating_point() else a.to(torch.get_default_dtype())


def _mixed(x: Tensor) -> Tensor:
    """32 bits held in 64; products wrap, and their low 32 bits are right."""
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def _hashed(key: Tensor, counter: Tensor) -> Tensor:
    first = _mixed((key.to(torch.int64) ^ 0x9E3779B9) & 0xFFFFFFFF)
    return _mixed((first ^ counter.to(torch.int64)) & 0xFFFFFFFF) & 0x7FFFFFFF


TORCH: dict[str, Callable[..., Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": lambda a, b: torch.div(a, b),
    "//": _floor_divide,
    "%": torch.remainder,
    "hash": _hashed,
    "^": lambda a, b: torch.pow(_number(a), b),
    "neg": torch.neg,
    "abs": torch.abs,
    "max": lambda a, b: torch.maximum(*_same(a, b)),
    "min": lambda a, b: torch.minimum(*_same(a, b)),
    "sign": torch.sign,
    "stop": torch.Tensor.detach,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "log": torch.log,
    "log2": torch.log2,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": lambda a: -torch.nn.functional.logsigmoid(-a),
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "floor": lambda a: torch.floor(a).to(torch.int64),
    "float": _number,
    "int": lambda a: a.to(torch.int64),
    "<": torch.lt,
    "<=": torch.le,
    ">": torch.gt,
    ">=": torch.ge,
    "==": torch.eq,
    "!=": torch.ne,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    "select": lambda c, a, b: torch.where(c, *_same(a, b)),
}

FLOATING = frozenset(name for name, fn in FUNCTIONS.items() if fn.result == "float")
"""Functions that take whole numbers as floats."""
REDUCE: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "sum": lambda x, axes: x.sum(axes),
    "max": lambda x, axes: x.amax(axes),
    "min": lambda x, axes: x.amin(axes),
    "any": lambda x, axes: x.bool().any(dim=axes[0]) if len(axes) == 1 else x.bool().flatten(axes[0]).any(-1),
    "prod": lambda x, axes: x.flatten(axes[0]).prod(-1),
}
COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "max": torch.maximum,
    "min": torch.minimum,
    "any": torch.logical_or,
    "prod": torch.mul,
}


def _same(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)
