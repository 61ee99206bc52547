"""What the functions of the IR mean on numpy arrays: for samples that an analysis draws, in float64. `ir.meaning` says it for tensors."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def _mixed(x: Array) -> Array:
    """32 bits held in 64; products wrap, and their low 32 bits are right."""
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return np.asarray(x ^ x >> 16)


def _hashed(key: Array, counter: Array) -> Array:
    first = _mixed((np.asarray(key, np.int64) ^ 0x9E3779B9) & 0xFFFFFFFF)
    return _mixed((first ^ np.asarray(counter, np.int64)) & 0xFFFFFFFF) & 0x7FFFFFFF


NUMPY: dict[str, Callable[..., Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": np.true_divide,
    "//": np.floor_divide,
    "%": np.remainder,
    "hash": _hashed,
    "^": lambda a, b: np.power(np.asarray(a, float), b),
    "neg": operator.neg,
    "abs": np.abs,
    "max": np.maximum,
    "min": np.minimum,
    "sign": np.sign,
    "stop": lambda a: a,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "tanh": np.tanh,
    "sigmoid": lambda a: np.exp(-np.logaddexp(0, -a)),
    "softplus": lambda a: np.logaddexp(0, a),
    "erf": np.vectorize(math.erf, otypes=[float]),  # numpy itself has none
    "sin": np.sin,
    "cos": np.cos,
    "floor": lambda a: np.floor(a).astype(np.int64),
    "float": lambda a: np.asarray(a, float),
    "int": lambda a: np.asarray(a).astype(np.int64),
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "select": np.where,
}
