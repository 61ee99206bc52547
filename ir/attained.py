"""The points that a maximum or minimum took, found again where a gradient needs them.

    m[i] = max[j](tanh(s))       attained:   tanh(s) + error >= m,   error = (1 - tanh(s)^2) * SUM * max(1, |s|) + UNIT * |tanh(s)|

A kernel computes the values under a maximum again, in another order, so the largest need not be equal to the maximum that was saved. What
they may differ by is a running error bound (Higham, Accuracy and Stability of Numerical Algorithms, section 3.3), computed beside the value:
the errors of what an expression is made of, each times the slope, and the rounding of its own operation. Points within it of the maximum
share its gradient; so do those that are equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.definitions import Definitions
from einfuse.ir.errors import TooLargeError
from einfuse.ir.expr import call
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Einsum, Expr, Flat, Rank
from einfuse.ir.rewrite import fresh, taken, types_of

SUM = 4e-6
"""The error of a sum that is computed again, relative to its value or to 1: fp32, in any order."""
UNIT = 2.0**-22
"""The relative error of one operation: two units in the last place of fp32."""


def attained(x: Einsum, body: Iterable[Einsum], ranks: Iterable[Rank], times: float = 1.0) -> Expr:
    """The condition of a point of the maximum or minimum ``x``, a statement of ``body``: is it one that ``x`` took?

    What a reduction over a sequence gives is saved, and so the same number both times. ``times`` is a factor of the error.
    """
    assert x.reducer.extreme is not None, f"{x.target} is not one of what it is made of"
    nearer, farther = ("+", "-") if x.reducer.extreme == ">=" else ("-", "+")
    extreme, sequences = ex.at(x.target, x.ranks), {r.name for r in ranks if r.is_sequence}
    again = {y.target for y in body if y.red is not None and not sequences & set(y.over)}
    try:
        value = Definitions(y for y in body if y.red is None).into(x.map)
        scale = _scale(value, again)
        error = _Error(again).of(value) if scale is None else _of_sum(scale, extreme)
    except TooLargeError:
        scale = ex.ONE
        error = _of_sum(scale, extreme)
    error = call("*", ex.const(times), error)
    if scale is not None:  # a number of the row
        return call(x.reducer.extreme, x.map, call(farther, extreme, error))
    # in this order a value that is infinite the wrong way has an error that is infinite, and is no number
    return call(x.reducer.extreme, call(nearer, x.map, error), extreme)


def _scale(value: Expr, again: set[str]) -> Expr | None:
    """What one sum is multiplied by, where the value is that product and the factor is the same at every point."""
    over, under = ex.quotient(value)
    sums = [f for f in over if f.op == "load" and f.name in again]
    rest = [f for f in (*over, *under) if f not in sums]
    if len(sums) != 1 or any(ex.reads(f) or ex.indices(f) for f in rest):
        return None
    return ex.fraction([f for f in over if f not in sums], under)


def _of_sum(scale: Expr, value: Expr) -> Expr:
    """The error of a sum times ``scale``, given that product."""
    return call("*", ex.const(SUM), call("max", call("abs", scale), call("abs", value)))


def shared(cascade: Flat, times: float = 1.0) -> Flat:
    """The cascade (as built), its maxima and minima handing gradients to the points that are `attained`, as kernels do; values are the same."""
    names, kinds, body = taken(cascade), types_of(cascade), list[Einsum]()
    for x in cascade.body:
        if x.reducer.extreme is None or kinds[x.target] != "float":
            body.append(x)
            continue
        best = replace(x, target=fresh(f"{x.target}_best", names))
        here = attained(best, [*body, best], cascade.ranks, times)
        ties = replace(
            x, target=fresh(f"{x.target}_ties", names), red="sum", map=call("select", here, ex.const(1.0), ex.const(0.0))
        )
        moved = call("/", call("-", x.map, call("stop", x.map)), ex.at(ties.target, x.ranks))
        share = replace(ties, target=fresh(f"{x.target}_share", names), map=call("select", here, moved, ex.const(0.0)))
        value = call("+", call("stop", ex.at(best.target, x.ranks)), ex.at(share.target, x.ranks))
        body += [best, ties, share, replace(x, red=None, over=(), map=value, mask=None)]
    return replace(cascade, body=tuple(body))


class _Error:
    """Bounds of the errors of expressions; ``again`` names the sums that are computed again."""

    def __init__(self, again: set[str]) -> None:
        self.again = again
        self.known: dict[int, tuple[Expr, Expr]] = {}  # by id, with the expression, which keeps the id its own

    def of(self, e: Expr) -> Expr:
        if id(e) not in self.known:
            self.known[id(e)] = (e, self._found(e))
        return self.known[id(e)][1]

    def _found(self, e: Expr) -> Expr:
        if e.op == "load" and e.name in self.again:
            return _of_sum(ex.ONE, e)
        if e.op == "stop":
            return self.of(e.args[0])
        if e.op not in FUNCTIONS or not ex.reads(e):
            return ex.ZERO
        return call("+", self._handed_on(e), _own(e))

    def _handed_on(self, e: Expr) -> Expr:
        """The errors of the operands, each by the slope along it."""
        rule = FUNCTIONS[e.op].differential
        errors = [self.of(a) for a in e.args] if rule is not None else []
        total: Expr = ex.ZERO
        for k, error in enumerate(errors):
            if rule is not None and not ex.is_const(error, 0):
                total = call("+", total, call("abs", rule(e, [error if n == k else ex.ZERO for n in range(len(errors))])))
        return total


def _own(e: Expr) -> Expr:
    """The rounding of the operation itself: of sums, by the sizes of the terms, which may be added up in another order."""
    if e.op in ("+", "-"):
        return call("*", ex.const(UNIT), call("+", *(call("abs", a) for a in e.args)))
    rounds = e.op == "*" or FUNCTIONS[e.op].special
    return call("*", ex.const(UNIT), call("abs", e)) if rounds else ex.ZERO
