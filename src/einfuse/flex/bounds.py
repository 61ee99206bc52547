"""The least and the greatest value that a traced number can have, by interval arithmetic; unknown ends are infinite."""

from __future__ import annotations

import math
from collections.abc import Callable

from einfuse.ir.functions import FUNCTIONS, Function

Bounds = tuple[float, float]
"""Those of integers are ints, or infinite."""
UNKNOWN: Bounds = (-math.inf, math.inf)
CONDITION: Bounds = (0, 1)


def of(op: str, *operands: Bounds) -> Bounds:
    """The bounds of a function of the IR, from those of its operands."""
    rule, f = _RULES.get(op), FUNCTIONS.get(op)
    if rule is not None:
        found = rule(*operands)
    elif f is not None:
        found = _risen(f, *operands) if f.rises else f.limits
    else:
        found = UNKNOWN
    return UNKNOWN if any(x != x for x in found) else found  # an int may be too large for isnan


def hull(a: Bounds, b: Bounds) -> Bounds:
    return min(a[0], b[0]), max(a[1], b[1])


def _corners(fn: Callable[[float, float], float]) -> Callable[[Bounds, Bounds], Bounds]:
    """Of a function that is monotone in each operand."""

    def rule(a: Bounds, b: Bounds) -> Bounds:
        found = [fn(x, y) for x in a for y in b]
        return UNKNOWN if any(x != x for x in found) else (min(found), max(found))

    return rule


def _apart_from_zero(rule: Callable[[Bounds, Bounds], Bounds]) -> Callable[[Bounds, Bounds], Bounds]:
    return lambda a, b: rule(a, b) if b[0] > 0 or b[1] < 0 else UNKNOWN


def _floor_divide(x: float, y: float) -> float:
    if math.isinf(x):
        return x if y > 0 else -x
    return (-1 if (x < 0) != (y < 0) and x else 0) if math.isinf(y) else x // y


def _remainder(a: Bounds, b: Bounds) -> Bounds:
    if b[0] > 0:
        return a if 0 <= a[0] and a[1] < b[0] else (0, b[1] - 1)
    return (b[0] + 1, 0) if b[1] < 0 else UNKNOWN


def _abs(a: Bounds) -> Bounds:
    low, high = min(map(abs, a)), max(map(abs, a))
    return (0 if a[0] <= 0 <= a[1] else low), high


def _risen(f: Function, a: Bounds) -> Bounds:
    """Of a function that rises, between its limits; widened by what a kernel may round."""
    least, most = f.limits

    def end(x: float, outward: float) -> float:
        if math.isinf(x):
            return least if x < 0 else most
        try:
            value = float(f.fold(x))
            return min(max(value * (1 + math.copysign(1e-5, value) * outward), least), most)
        except (OverflowError, ValueError):
            return least if outward < 0 else most

    return end(a[0], -1), end(a[1], 1)


def _rounded(fn: Callable[[float], float]) -> Callable[[Bounds], Bounds]:
    return lambda a: (a[0] if math.isinf(a[0]) else fn(a[0]), a[1] if math.isinf(a[1]) else fn(a[1]))


_RULES: dict[str, Callable[..., Bounds]] = {
    "+": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "-": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "*": _corners(lambda x, y: x * y if x and y else 0),
    "/": _apart_from_zero(_corners(lambda x, y: 0.0 if math.isinf(y) else x / y)),
    "//": _apart_from_zero(_corners(_floor_divide)),
    "%": _remainder,
    "neg": lambda a: (-a[1], -a[0]),
    "abs": _abs,
    "sign": _rounded(lambda x: (x > 0) - (x < 0)),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "select": lambda c, a, b: hull(a, b),
    "float": lambda a: a,
    "int": _rounded(math.trunc),
    "floor": _rounded(math.floor),
}
