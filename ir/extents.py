"""How large the values of int expressions are, in sizes: what spans of lists and indices inside their axes are told by."""

from __future__ import annotations

from einfuse.ir import expr as ex
from einfuse.ir.bounds import Known
from einfuse.ir.nodes import Cascade, Expr

_KNOWN = Known()
"""What is known of any ints: coordinates and sizes are not negative."""


def not_negative(e: Expr) -> bool:
    """Is an int expression never below 0, by its form?"""
    return _KNOWN.at_least(e, ex.ZERO)


def span_of(e: Expr, c: Cascade) -> Expr | None:
    """A number above every value of an int expression, as an expression of sizes; None where none is known."""
    match e.op:
        case "const":
            return ex.const(max(int(e.value), 0) + 1)  # type: ignore[arg-type]  # an int
        case "index":
            return ex.size(c.rank(e.name).size)
        case "size":
            return ex.call("+", e, ex.ONE)
        case "-" if not_negative(e.args[1]):
            return span_of(e.args[0], c)
        case "%":
            return e.args[1] if not ex.reads(e.args[1]) and not ex.indices(e.args[1]) else None
        case "//" if not ex.reads(e.args[1]) and not ex.indices(e.args[1]):
            whole = span_of(e.args[0], c)
            return None if whole is None else ex.call("+", ex.call("//", ex.call("-", whole, ex.ONE), e.args[1]), ex.ONE)
        case "+" | "*" | "max" | "min":
            a, b = (span_of(x, c) for x in e.args)
            if a is None or b is None or not (e.op != "*" or all(map(not_negative, e.args))):
                return None
            most = ex.call(e.op, ex.call("-", a, ex.ONE), ex.call("-", b, ex.ONE))
            return ex.call("+", most, ex.ONE)
    return None


def most_of(e: Expr, c: Cascade) -> Expr | None:
    """As `span_of`, but a bound that may be far above every value where e is divided by what no size tells."""
    found = span_of(e, c)
    inner = e.op == "//" and not_negative(e.args[0])  # the quotient by any int is at most as large
    return most_of(e.args[0], c) if found is None and inner else found


def within_axis(c: Cascade, index: Expr, axis: Expr) -> bool:
    """Is ``index`` inside an axis by construction: a coordinate of that very size, ``h // g`` on an axis ``H // g``, two digits of a place?"""
    if index.op == "index":
        return axis == ex.size(c.rank(index.name).size)
    if index.op == "const" and axis.op == "const":
        return 0 <= index.value < axis.value  # type: ignore[operator]  # both are ints
    if index.op == axis.op == "//":  # a size that divides an axis divides it without a rest; a number may leave one
        whole = index.args[1].op == "size"
        return whole and within_axis(c, index.args[0], axis.args[0]) and index.args[1] == axis.args[1]
    if index.op == "+" and axis.op == index.args[0].op == "*":  # n * a + b with a in A and b in n, on an axis n * A
        (digit, high), low = index.args[0].args, index.args[1]
        return digit == axis.args[0] and within_axis(c, high, axis.args[1]) and within_axis(c, low, digit)
    return span_of(index, c) == axis and not_negative(index)
