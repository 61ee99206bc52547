"""Exponentials of differences from something of fewer ranks, as powers of two, which machines have.

    before   s = y * c ; x = s - m ; p = exp(x)              s[i, j], m[i], a number c
    after    p = exp2(x * log2 e)                            `powers`
    or       p = exp2(y * (c * log2 e) - (m * log2 e))       from `difference`: the products with c and m are a row's

The error of the first is that of x, and none where x is 0; that of the second is as large as that of m.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from einfuse.codegen.plan import Const, KernelPlan, Map, Op, Region, Store, Value

LOG2E = math.log2(math.e)


def difference(op: Op, made: Mapping[str, Map]) -> tuple[Value, Value, Value | None] | None:
    """The y, m and c (None for 1) of an exponential, found among the maps by name; None where it is of something else."""
    x = made.get(op.args[0].name) if isinstance(op, Map) and op.fn == "exp" else None
    if x is None or x.fn != "-":
        return None
    s, m = x.args
    if s.dtype != "float" or m.dtype != "float" or not len(m.dims) < len(x.out.dims):
        return None
    scaled = made.get(s.name)
    if scaled is not None and scaled.fn == "*" and scaled.out.dims:
        for y, c in (scaled.args, scaled.args[::-1]):
            if y.dims == s.dims and not c.dims and y.dtype == c.dtype == "float":
                return y, m, c
    return s, m, None


def powers(plan: KernelPlan) -> KernelPlan:
    """The plan with such exponentials in the loops of its folds written out as powers of two, where it computes in float32."""
    if plan.compute != "f32":
        return plan

    return plan.mapped(lambda region: region, lambda f: f.mapped(_powers))


def _powers(region: Region) -> Region:
    made = {op.out.name: op for op in region if isinstance(op, Map)}
    taken = {op.out.name for op in region if not isinstance(op, Store)}
    out: list[Op] = []
    for op in region:
        if difference(op, made) is None or not isinstance(op, Map):
            out.append(op)
            continue
        name = f"{op.out.name}.exponent"
        while name in taken:
            name += "_"
        base, exponent = Value(f"{name}.base", (), "float"), replace(op.out, name=name)
        taken |= {base.name, exponent.name}
        out += [Const(base, LOG2E), Map(exponent, "*", (op.args[0], base)), Map(op.out, "exp2", (exponent,))]
    return tuple(out)
