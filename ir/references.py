"""What a fold's sums refer to, a running maximum, while it is minus infinity: no point was seen, or none but such.

    state m[i] = max s[i, j]
    state l[i] = sum exp(s[i, j] - m[i]) carry l[i] * exp(m[i] - m'[i])        `reviving`: m; `vanishes`: exp(-inf) is 0

No difference can be taken from an infinite reference, so it counts as 0. What was added up beside it is then 0 and need not be moved, or
it was made with that 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Expr, Fold, State
from einfuse.ir.statements import lets


def reviving(f: Fold, y: State) -> list[State]:
    """The largest and smallest values that may have been infinite so far and from which the carry of ``y`` then has no way on."""
    if y.carry is None:
        return []
    states = {z.target: z for z in f.states if z.reducer.extreme and z is not y}
    moving = _unless_finite(y.carry, states)
    for z in reversed(f.body):
        if z.target in moving & lets(f):
            moving |= _unless_finite(z.map, states)
    return [z for n, z in states.items() if n in moving]


def vanishes(f: Fold, y: State, dead: Sequence[State]) -> bool:
    """Whether nothing is added to ``y`` by points that the ``dead`` statistics saw as infinite, as exp(-inf) is nothing."""
    infinite = {z.map: ex.const(z.reducer.identity) for z in dead}
    local = {z.target: z.map for z in f.einsums if not z.red}
    references = {z.target for z in dead}

    def one(e: Expr) -> Expr | None:
        if e in infinite or e.op != "load":
            return infinite.get(e)
        if e.name in references:
            return ex.ZERO
        return ex.substitute(local[e.name], one) if e.name in local else None

    return ex.is_const(ex.substitute(y.map, one), 0)


def floored(f: Fold, e: Expr) -> bool:
    """Whether ``e`` is a finite number while the largest and smallest values of the fold that it reads are infinite, as max(m, 0) is."""
    return _finite(e, {y.target: y for y in f.states if y.reducer.extreme})


def _unless_finite(e: Expr, states: dict[str, State]) -> set[str]:
    """The names that ``e`` reads, but for what is a finite number while the states are infinite."""

    def one(part: Expr) -> Expr | None:
        if part.op in ex.LEAVES or ex.names(part, "new") or not ex.reads(part) & states.keys():
            return None
        return ex.ZERO if _finite(part, states) else None

    return ex.reads(ex.substitute(e, one))


def _finite(e: Expr, states: dict[str, State]) -> bool:
    def begun(x: Expr) -> Expr | None:
        return ex.const(states[x.name].reducer.identity) if x.op in ("load", "new") and x.name in states else None

    found = ex.substitute(e, begun)
    return found.op == "const" and isinstance(found.value, int | float) and math.isfinite(found.value)
