"""Singular values by Jacobi's rotations (Hestenes, 1958): columns are turned until all are orthogonal; their lengths are the values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

SWEEPS = 40
SMALL = 1e-15


def svd(matrix: Any, compute_uv: bool = False) -> np.ndarray:
    """The singular values, the largest first; the vectors are not made."""
    assert not compute_uv, "only values are asked for"
    rows = np.asarray(matrix, float).tolist()
    columns = list(map(list, zip(*rows, strict=True)))
    for _ in range(SWEEPS):
        turned = False
        for n in range(len(columns)):
            for m in range(n + 1, len(columns)):
                turned |= _turn(columns, n, m)
        if not turned:
            break
    values = sorted((math.sqrt(sum(x * x for x in c)) for c in columns), reverse=True)
    return np.asarray(values[: min(len(rows), len(columns))], float)


def _turn(columns: list[list[float]], n: int, m: int) -> bool:
    """Makes two columns orthogonal; False where they are."""
    a, b = columns[n], columns[m]
    alpha, beta = sum(x * x for x in a), sum(x * x for x in b)
    gamma = sum(x * y for x, y in zip(a, b, strict=True))
    if gamma * gamma <= SMALL * SMALL * alpha * beta or alpha * beta == 0:
        return False
    zeta = (beta - alpha) / (2 * gamma)
    t = math.copysign(1, zeta) / (abs(zeta) + math.hypot(1, zeta))
    c = 1 / math.hypot(1, t)
    s = c * t
    columns[n] = [c * x - s * y for x, y in zip(a, b, strict=True)]
    columns[m] = [s * x + c * y for x, y in zip(a, b, strict=True)]
    return True
