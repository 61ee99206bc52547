"""The scalar functions of the IR as C++ text, of one number (``T``, ``long``, ``bool``) or of a vector (``V``, ``VI``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from einfuse.ir import FUNCTIONS, DType, Scalar


@dataclass(frozen=True, slots=True)
class Ref:
    """A value in the text: an expression without side effects, its type, whether it is a vector, and its number if it is a literal."""

    text: str
    dtype: DType
    vector: bool = False
    literal: Scalar | None = None


def number(value: Scalar, dtype: DType) -> str:
    """A literal of a type."""
    if dtype == "bool":
        return "true" if value else "false"
    if dtype == "int":
        return f"{int(value)}L" if value >= 0 else f"({int(value)}L)"
    x = float(value)
    if math.isinf(x):
        return "INF" if x > 0 else "(-INF)"
    if math.isnan(x):
        return "NOT_A_NUMBER"
    return f"T({x!r})"


def literal(value: Scalar, dtype: DType) -> Ref:
    return Ref(number(value, dtype), dtype, False, value)


def converted(a: Ref, dtype: DType) -> Ref:
    """The value as another type."""
    if a.dtype == dtype:
        return a
    if a.literal is not None:
        return literal({"float": float, "int": int, "bool": bool}[dtype](a.literal), dtype)
    if dtype == "bool":
        return Ref(f"({a.text} != 0)", dtype, a.vector)
    if a.vector:
        form = {("int", "float"): "real({})", ("bool", "float"): "truth_real({})", ("float", "int"): "whole({})"}
        return Ref(form.get((a.dtype, dtype), "(-{})").format(a.text), dtype, True)
    return Ref(f"{'(T)' if dtype == 'float' else '(long)'}{a.text}", dtype)


def spread(a: Ref) -> str:
    """The value as a vector."""
    return a.text if a.vector else f"spread({a.text})"


def bare(a: Ref, vector: bool) -> str:
    """An operand of an infix operator: a number beside a vector needs only its element's type."""
    if a.vector or not vector or a.dtype == "float":
        return a.text
    if a.dtype == "bool":
        return f"spread({a.text})"
    return str(a.literal) if a.literal is not None and a.text[0] != "(" else f"(I)({a.text})"


Form = Callable[[Sequence[Ref], bool], str]


def _infix(sign: str) -> Form:
    return lambda args, vector: f"({bare(args[0], vector)} {sign} {bare(args[1], vector)})"


def _compare(sign: str) -> Form:
    def form(args: Sequence[Ref], vector: bool) -> str:
        text = f"({bare(args[0], vector)} {sign} {bare(args[1], vector)})"
        return f"(VI){text}" if vector else text

    return form


def _logic(vector_sign: str, sign: str) -> Form:
    return lambda args, vector: f"({bare(args[0], vector)} {vector_sign if vector else sign} {bare(args[1], vector)})"


def _call(name: str) -> Form:
    return lambda args, vector: f"{name}({', '.join(spread(a) if vector else a.text for a in args)})"


def _vector_only(name: str) -> Form:
    """A function that exists for vectors: a number goes through it as one, so that both give the same bits."""
    return lambda args, vector: f"{name}({', '.join(map(spread, args))})" + ("" if vector else "[0]")


def _select(args: Sequence[Ref], vector: bool) -> str:
    c, a, b = args
    if not vector:
        return f"({c.text} ? {a.text} : {b.text})"
    return f"select({c.text}, {spread(a)}, {spread(b)})"


def _power(args: Sequence[Ref], vector: bool) -> str:
    x, y = args
    if y.literal in (1, 2, 3, 4) and (x.text.isidentifier()):
        return f"({' * '.join([x.text] * int(y.literal))})"
    if y.literal == 0.5:
        return _vector_only("square_root")([x], vector)
    return _vector_only("power")(args, vector)


FORMS: dict[str, Form] = {
    "+": _infix("+"),
    "-": _infix("-"),
    "*": _infix("*"),
    "/": _infix("/"),
    "//": _call("floor_div"),
    "%": _call("floor_mod"),
    "^": _power,
    "neg": lambda args, vector: f"(-{args[0].text})",
    "abs": _call("absolute"),
    "max": _call("maximum"),
    "min": _call("minimum"),
    "sign": _call("sign"),
    "stop": lambda args, vector: args[0].text,
    "exp": _vector_only("exponential"),
    "exp2": _vector_only("exponential2"),
    "log": _vector_only("logarithm"),
    "log2": _vector_only("logarithm2"),
    "log1p": _vector_only("logarithm1p"),
    "sqrt": _vector_only("square_root"),
    "rsqrt": _vector_only("reciprocal_root"),
    "tanh": _vector_only("hyperbolic_tangent"),
    "sigmoid": _vector_only("logistic"),
    "softplus": _vector_only("soft_plus"),
    "erf": _vector_only("error_function"),
    "sin": _vector_only("sine"),
    "cos": _vector_only("cosine"),
    "floor": _call("floor_whole"),
    "float": lambda args, vector: converted(args[0], "float").text,
    "int": lambda args, vector: converted(args[0], "int").text,
    "<": _compare("<"),
    "<=": _compare("<="),
    ">": _compare(">"),
    ">=": _compare(">="),
    "==": _compare("=="),
    "!=": _compare("!="),
    "and": _logic("&", "&&"),
    "or": _logic("|", "||"),
    "not": lambda args, vector: f"({'~' if vector else '!'}{args[0].text})",
    "select": _select,
    "copy": lambda args, vector: args[0].text,
}
assert FORMS.keys() == FUNCTIONS.keys() | {"copy"}, "every scalar function of the IR has a C++ form"


def applied(fn: str, args: Sequence[Ref], dtype: DType) -> Ref:
    """``fn(*args)``, a result of type ``dtype``; a vector if any operand is."""
    vector = any(a.vector for a in args)
    kind = _operands(fn, [a.dtype for a in (args[1:] if fn == "select" else args)])
    if kind is not None:
        args = [a if fn == "select" and n == 0 else converted(a, kind) for n, a in enumerate(args)]
    found: DType = dtype
    if FUNCTIONS[fn].result == "same" if fn in FUNCTIONS else True:
        found = args[-1].dtype
    elif fn in FUNCTIONS:
        found = FUNCTIONS[fn].result  # type: ignore[assignment]  # every other entry of the table is a DType
    out = FORMS[fn](args, vector)
    if fn == "copy" and not vector:
        return converted(Ref(out, found), dtype)
    return converted(Ref(out, found, vector), dtype)


def _operands(fn: str, types: Sequence[DType]) -> DType | None:
    """The type that operands are brought to before ``fn``."""
    if fn in ("float", "int", "copy", "not", "and", "or"):
        return None
    if fn == "floor" or FUNCTIONS[fn].result == "float":
        return "float"
    return "float" if "float" in types else "int" if "int" in types else "bool"
