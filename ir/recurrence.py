"""The algebra of a linear recurrence: what a scan's update is made of, read off the update itself.

    S[d, e] = exp(g) * S[d, e] + beta * k * (v[e] - exp(g) * kS[e])       with kS[e] = sum[d](k * S)

is a *decay* ``exp(g)`` (a number per point, or one per feature) and *writes*: products of factors that are free of the state, at most
one of them a *read* of the carried state itself (which makes the transition the identity minus a matrix of rank one: a delta rule).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from einfuse.ir import expr as ex
from einfuse.ir.definitions import Definitions
from einfuse.ir.errors import EinfuseError, TooLargeError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Einsum, Expr, Fold, State

MAX_TERMS = 64


class NotLinearError(EinfuseError):
    """The recurrence has no chunked form, and why; it runs point by point."""


@dataclass(frozen=True, slots=True)
class Update:
    """``S' = decay * S + sum of products``; ``read`` is the read of the carried state that some of the products hold."""

    decay: Expr
    writes: tuple[tuple[Expr, ...], ...]
    read: str | None


@dataclass(frozen=True, slots=True)
class LogDecay:
    """A decay as ``exp(log)``, and 0 where ``reset``; None: 0 and never."""

    log: Expr | None
    reset: Expr | None


def expand(e: Expr, special: Callable[[Expr], bool]) -> list[tuple[Expr, ...]]:
    """``e`` as a sum of products, multiplied out only where a factor is ``special``. Raises NotLinearError."""
    if not special(e):
        return [(e,)]
    if e.op == "load":
        return [(e,)]
    if e.op in ("+", "-"):
        right = expand(e.args[1], special)
        return expand(e.args[0], special) + (right if e.op == "+" else [(ex.const(-1), *t) for t in right])
    if e.op == "neg":
        return [(ex.const(-1), *t) for t in expand(e.args[0], special)]
    if e.op == "*":
        out = [(*a, *b) for a in expand(e.args[0], special) for b in expand(e.args[1], special)]
        if len(out) > MAX_TERMS:
            raise NotLinearError(f"the update has more than {MAX_TERMS} products")
        return out
    if e.op == "/" and not special(e.args[1]):
        return [(*t, call("/", ex.ONE, e.args[1])) for t in expand(e.args[0], special)]
    if e.op == "select" and not special(e.args[0]):
        yes, no = (call("select", e.args[0], *sides) for sides in ((ex.ONE, ex.ZERO), (ex.ZERO, ex.ONE)))
        sides = [(e.args[1], yes), (e.args[2], no)]
        return [(*t, c) for side, c in sides if not ex.is_const(side, 0) for t in expand(side, special)]
    raise NotLinearError(f"`{e.op}` of the state is not linear in it")


def clean(factors: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The factors one by one, with the numbers among them multiplied."""
    number: Expr = ex.ONE
    out: list[Expr] = []
    for f in (part for whole in factors for part in ex.factors(whole)):
        sign, f = (ex.const(-1), f.args[0]) if f.op == "neg" else (ex.ONE, f)
        number = call("*", number, sign)
        if f.op == "const":
            number = call("*", number, f)
        else:
            out.append(f)
    return (*(() if ex.is_const(number, 1) else (number,)), *out)


def update(fold: Fold, state: State) -> Update:
    """The decay and the writes of one state of a scan. Raises NotLinearError where its update is no linear recurrence."""
    before = {y.target: y for y in fold.above(state)}
    own = ex.at(state.target, state.ranks)
    depends = _dependants(before, {state.target})
    reads = [n for n in depends if before[n].red is not None or state.target in ex.reads(before[n].map)]
    pointwise = {n: before[n] for n in depends if n not in reads}
    whole = inline(state.map, pointwise)
    unknown = [n for n in reads if n in ex.reads(whole)]
    if len(unknown) > 1:
        raise NotLinearError(f"the update of {state.target} holds {len(unknown)} reads of it ({', '.join(unknown)})")
    names = {state.target, *unknown}
    decay: Expr = ex.ZERO
    writes: list[tuple[Expr, ...]] = []
    for term in expand(whole, lambda e: bool(ex.reads(e) & names)):
        parts = clean(term)
        held = [p for p in parts if ex.reads(p) & names]
        if len(held) > 1:
            raise NotLinearError(f"the update of {state.target} multiplies the state with itself")
        if held and held[0].name == state.target:
            if held[0] != own:
                raise NotLinearError(f"the update reads {state.target} at other coordinates than its own")
            decay = call("+", decay, ex.product(*(p for p in parts if p is not held[0])))
        else:
            writes.append(parts)
    return Update(decay, tuple(writes), unknown[0] if unknown else None)


def _dependants(statements: Mapping[str, Einsum], roots: set[str]) -> list[str]:
    """The statements that read a root, or one that does, in order."""
    known, out = set(roots), []
    for n, x in statements.items():
        if ex.reads(x.map) & known:
            known.add(n)
            out.append(n)
    return out


def inline(e: Expr, definitions: Mapping[str, Einsum]) -> Expr:
    """``e`` with the reads of pointwise statements replaced by their values. Raises NotLinearError."""

    def allowed(x: Einsum) -> None:
        if x.mask is not None:
            raise NotLinearError(f"{x.target} does not exist everywhere")

    try:
        return Definitions(definitions.values(), allowed).into(e)
    except TooLargeError as error:
        raise NotLinearError("the update grows too large once what it reads is written into it") from error


def log_decay(e: Expr) -> LogDecay:
    """A decay in logarithms, so that products over a chunk are sums. Raises NotLinearError where its sign is not known."""
    match e.op:
        case "const" if isinstance(e.value, int | float) and e.value > 0:
            return LogDecay(None if e.value == 1 else ex.const(math.log(e.value)), None)
        case "exp":
            return LogDecay(e.args[0], None)
        case "exp2":
            return LogDecay(call("*", e.args[0], ex.const(math.log(2))), None)
        case "sigmoid":
            return LogDecay(call("neg", call("softplus", call("neg", e.args[0]))), None)
        case "sqrt":
            return _scaled(log_decay(e.args[0]), ex.const(0.5))
        case "^":
            return _scaled(log_decay(e.args[0]), e.args[1])
        case "*" | "/":
            a, b = map(log_decay, e.args)
            if e.op == "/" and b.reset is not None:
                raise NotLinearError("the decay divides by a number that may be 0")
            return LogDecay(_sum(a.log, b.log, "+" if e.op == "*" else "-"), _either(a.reset, b.reset))
        case "float" | "int" if ex.scalar_type(e.args[0], lambda _: "float") == "bool":
            return LogDecay(None, call("not", e.args[0]))
        case "select":
            return _chosen(*e.args)
    raise NotLinearError(
        "the sign of the decay is not known: write it as exp(...), sigmoid(...) or a choice between such and 0"
    )


def _chosen(condition: Expr, yes: Expr, no: Expr) -> LogDecay:
    if ex.is_const(yes, 0) or ex.is_const(yes, 0.0):
        other = log_decay(no)
        return LogDecay(_where(call("not", condition), other.log), _either(condition, other.reset))
    if ex.is_const(no, 0) or ex.is_const(no, 0.0):
        return _chosen(call("not", condition), no, yes)
    a, b = log_decay(yes), log_decay(no)
    if a.reset is not None or b.reset is not None:
        raise NotLinearError("the decay is a choice inside a choice")
    log = call("select", condition, a.log or ex.const(0.0), b.log or ex.const(0.0))
    return LogDecay(log, None)


def _where(condition: Expr, log: Expr | None) -> Expr | None:
    return None if log is None else call("select", condition, log, ex.const(0.0))


def _scaled(a: LogDecay, by: Expr) -> LogDecay:
    return LogDecay(None if a.log is None else call("*", a.log, by), a.reset)


def _sum(a: Expr | None, b: Expr | None, op: str) -> Expr | None:
    if b is None:
        return a
    return call(op, a or ex.ZERO, b)


def _either(a: Expr | None, b: Expr | None) -> Expr | None:
    return b if a is None else a if b is None else call("or", a, b)
