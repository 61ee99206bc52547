"""Exponentials of differences from something of fewer ranks: one multiply-add and one power of two an element.

    before   s = y * c ; x = s - m ; p = exp(x)              s[i, j], m[i], a number c
    after    p = exp2(y * (c * log2 e) - (m * log2 e))       the products with c and m are a row's

Equal up to rounding, by |m| units in the last place: where m is the largest s the weight is no longer 1, and a row of one key has a gradient.
On CPUs therefore only for tensors that are rounded more than that (bf16, fp16).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from einfuse.codegen.plan import Const, Fold, KernelPlan, Map, Op, Region, Store, Value

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
    """The plan with such exponentials in the loops of its folds written out as powers of two."""

    def rewritten(fold: Fold) -> Fold:
        return replace(fold, phases=tuple(replace(p, body=_powers(p.body)) for p in fold.phases))

    return replace(plan, steps=tuple(rewritten(s) if isinstance(s, Fold) else s for s in plan.steps))


def _powers(region: Region) -> Region:
    made = {op.out.name: op for op in region if isinstance(op, Map)}
    taken = {op.out.name for op in region if not isinstance(op, Store)}
    out: list[Op] = []
    for op in region:
        found = difference(op, made)
        if found is None or not isinstance(op, Map):
            out.append(op)
            continue
        y, m, c = found

        def value(role: str, dims: tuple[str, ...], name: str = op.out.name) -> Value:
            text = f"{name}.{role}"
            while text in taken:
                text += "_"
            taken.add(text)
            return Value(text, dims, "float")

        base = value("base", ())
        factor = value("factor", ()) if c else base
        shift, scaled, exponent = value("shift", m.dims), value("scaled", y.dims), value("exponent", op.out.dims)
        out.append(Const(base, LOG2E))
        out += [Map(factor, "*", (c, base))] if c else []
        out += [Map(shift, "*", (m, base)), Map(scaled, "*", (y, factor)), Map(exponent, "-", (scaled, shift))]
        out.append(Map(op.out, "exp2", (exponent,)))
    return tuple(out)
