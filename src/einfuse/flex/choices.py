"""Choices: where, clamps, comparisons and logic."""

from __future__ import annotations

from functools import partial
from typing import Any

from einfuse.flex.arithmetic import (
    compare,
    condition,
    extreme,
    make,
    where,
)
from einfuse.flex.registry import OPERATIONS, operation
from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Value


@operation("where")
def _where(t: Tracer, c: Any, a: Any, b: Any) -> Value:
    if isinstance(c, Value) and c.kind != "bool":
        t.refuse(f"the condition of `where` is a {c.kind}, a condition is needed", "compare it")
    return where(t, c, a, b)


@operation("masked_fill")
def _masked_fill(t: Tracer, x: Any, mask: Any, value: Any) -> Value:
    return where(t, mask, value, x)


@operation("maximum", "fmax")
def _maximum(t: Tracer, a: Any, b: Any) -> Value:
    return extreme(t, "max", a, b)


@operation("minimum", "fmin")
def _minimum(t: Tracer, a: Any, b: Any) -> Value:
    return extreme(t, "min", a, b)


@operation("clamp", "clip")
def _clamp(t: Tracer, x: Any, min: Any = None, max: Any = None) -> Value:
    low = x if min is None else extreme(t, "max", x, min)
    return t.value(low if max is None else extreme(t, "min", low, max))


@operation("clamp_min")
def _clamp_min(t: Tracer, x: Any, min: Any) -> Value:
    return extreme(t, "max", x, min)


@operation("clamp_max")
def _clamp_max(t: Tracer, x: Any, max: Any) -> Value:
    return extreme(t, "min", x, max)


for _name, _op in (
    *(("lt", "<"), ("less", "<"), ("le", "<="), ("less_equal", "<="), ("gt", ">"), ("greater", ">")),
    *(("ge", ">="), ("greater_equal", ">="), ("eq", "=="), ("ne", "!="), ("not_equal", "!=")),
):
    OPERATIONS[_name] = partial(lambda t, a, b, op: compare(t, op, a, b), op=_op)


@operation("logical_and")
def _logical_and(t: Tracer, a: Any, b: Any) -> Value:
    return make(t, "and", "bool", condition(t, a), condition(t, b))


@operation("logical_or")
def _logical_or(t: Tracer, a: Any, b: Any) -> Value:
    return make(t, "or", "bool", condition(t, a), condition(t, b))


@operation("logical_xor")
def _logical_xor(t: Tracer, a: Any, b: Any) -> Value:
    return make(t, "!=", "bool", condition(t, a), condition(t, b))


@operation("logical_not")
def logical_not(t: Tracer, x: Any) -> Value:
    return make(t, "not", "bool", condition(t, x))
