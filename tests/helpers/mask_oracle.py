"""A concrete evaluator of integer expressions over numpy that knows nothing of the analysis, and the tiles it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from einfuse.ir import Einsum, Expr
from einfuse.ir.text import parse

_NUMPY: dict[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.true_divide,
    "//": np.floor_divide,
    "%": np.remainder,
    "neg": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "select": np.where,
    "int": lambda x: np.asarray(x).astype(np.int64),
    "sin": np.sin,
}


def evaluate(e: Expr, env: Mapping[str, Any]) -> Any:
    """``e`` where ``env`` holds the values of coordinates, sizes and tables by name; an index beyond a table is clamped."""
    if e.op == "const":
        return e.value
    if e.op in ("index", "size"):
        return env[e.name]
    args = [evaluate(a, env) for a in e.args]
    if e.op == "load":
        table = np.asarray(env[e.name])
        return table[tuple(np.clip(a, 0, n - 1) for a, n in zip(args, table.shape, strict=True))]
    return _NUMPY[e.op](*args)


def mask(text: str) -> Expr:
    """A predicate over the ranks b, h, i and j, in the notation of cascades."""
    ranks = "rank b: batch = B rank h: head = H rank i: query = Nq rank j: key = Nk"
    (x,) = parse(f"cascade c over b, h {{ {ranks} o[i] = 1 where {text} out o }}").body
    assert isinstance(x, Einsum), "one statement"
    assert x.mask is not None, "with a condition"
    return x.mask


def tiles(points: npt.NDArray[np.bool_], block: int, step: int) -> npt.NDArray[np.int8]:
    """0, 1 or 2 for every tile of ``points[..., i, j]``: none, some or all points hold; a ragged last column is never 2."""
    n, m = points.shape[-2:]
    rows, columns = np.arange(0, n, block), np.arange(0, m, step)
    some = np.logical_or.reduceat(np.logical_or.reduceat(points, rows, -2), columns, -1)
    every = np.logical_and.reduceat(np.logical_and.reduceat(points, rows, -2), columns, -1)
    out = some.astype(np.int8) + every
    if m % step:
        out[..., -1] = np.minimum(out[..., -1], 1)
    return out
