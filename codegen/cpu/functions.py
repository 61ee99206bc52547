"""The scalar functions of the IR as C++ text, of one number (``T``, ``long``, ``bool``) or of a vector (``V``, ``VI``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from einfuse.codegen.plan import FUNCTIONS
from einfuse.ir import DType, Scalar


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


Text = Callable[[Sequence[Ref], bool], str]


@dataclass(frozen=True, slots=True)
class Form:
    """The two texts of a function: ``text`` of numbers or vectors, and ``number`` of numbers alone, for the loops of scans, which are left
    to the compiler to vectorise. There ``T`` is the type of accumulation, and ``{c}`` converts to the type of the result."""

    text: Text
    number: str


def _infix(sign: str) -> Text:
    return lambda args, vector: f"({bare(args[0], vector)} {sign} {bare(args[1], vector)})"


def _compare(sign: str) -> Text:
    def form(args: Sequence[Ref], vector: bool) -> str:
        text = f"({bare(args[0], vector)} {sign} {bare(args[1], vector)})"
        return f"(VI){text}" if vector else text

    return form


def _logic(vector_sign: str, sign: str) -> Text:
    return lambda args, vector: f"({bare(args[0], vector)} {vector_sign if vector else sign} {bare(args[1], vector)})"


def _call(name: str) -> Text:
    return lambda args, vector: f"{name}({', '.join(spread(a) if vector else a.text for a in args)})"


def _vector_only(name: str) -> Text:
    """A function that exists for vectors: a number goes through it as one, so that both give the same bits."""
    return lambda args, vector: f"{name}({', '.join(map(spread, args))})" + ("" if vector else "[0]")


def _whole_division(name: str, sign: str, by: Callable[[int], int]) -> Text:
    """Vectors have no division of whole numbers; one by a power of two, rounded down, is a shift or a mask."""

    def form(args: Sequence[Ref], vector: bool) -> str:
        n = args[1].literal
        if vector and isinstance(n, int) and n > 0 and not n & (n - 1):
            return f"({spread(args[0])} {sign} {by(n)})"
        return _call(name)(args, vector)

    return form


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
    "+": Form(_infix("+"), "({0} + {1})"),
    "-": Form(_infix("-"), "({0} - {1})"),
    "*": Form(_infix("*"), "({0} * {1})"),
    "/": Form(_infix("/"), "((T){0} / (T){1})"),
    "//": Form(_whole_division("floor_div", ">>", lambda n: n.bit_length() - 1), "floor_div({0}, {1})"),
    "%": Form(_whole_division("floor_mod", "&", lambda n: n - 1), "floor_mod({0}, {1})"),
    "hash": Form(_call("hashed"), "hashed({0}, {1})"),
    "^": Form(_power, "std::pow((T){0}, (T){1})"),
    "neg": Form(lambda args, vector: f"(-{args[0].text})", "(-{0})"),
    "abs": Form(_call("absolute"), "std::abs({0})"),
    "max": Form(_call("maximum"), "std::max({c}{0}, {c}{1})"),
    "min": Form(_call("minimum"), "std::min({c}{0}, {c}{1})"),
    "sign": Form(_call("sign"), "sign({0})"),
    "stop": Form(lambda args, vector: args[0].text, "{0}"),
    "exp": Form(_vector_only("exponential"), "fast_exp((T){0})"),
    "exp2": Form(_vector_only("exponential2"), "fast_exp((T){0} * (T)0.693147180559945309)"),
    "log": Form(_vector_only("logarithm"), "std::log((T){0})"),
    "log2": Form(_vector_only("logarithm2"), "std::log2((T){0})"),
    "log1p": Form(_vector_only("logarithm1p"), "std::log1p((T){0})"),
    "sqrt": Form(_vector_only("square_root"), "std::sqrt((T){0})"),
    "rsqrt": Form(_vector_only("reciprocal_root"), "(1 / std::sqrt((T){0}))"),
    "tanh": Form(_vector_only("hyperbolic_tangent"), "std::tanh((T){0})"),
    "sigmoid": Form(_vector_only("logistic"), "sigmoid((T){0})"),
    "softplus": Form(_vector_only("soft_plus"), "softplus((T){0})"),
    "erf": Form(_vector_only("error_function"), "std::erf((T){0})"),
    "sin": Form(_vector_only("sine"), "std::sin((T){0})"),
    "cos": Form(_vector_only("cosine"), "std::cos((T){0})"),
    "floor": Form(_call("floor_whole"), "((long)std::floor({0}))"),
    "float": Form(lambda args, vector: converted(args[0], "float").text, "((T){0})"),
    "int": Form(lambda args, vector: converted(args[0], "int").text, "((long){0})"),
    "<": Form(_compare("<"), "({0} < {1})"),
    "<=": Form(_compare("<="), "({0} <= {1})"),
    ">": Form(_compare(">"), "({0} > {1})"),
    ">=": Form(_compare(">="), "({0} >= {1})"),
    "==": Form(_compare("=="), "({0} == {1})"),
    "!=": Form(_compare("!="), "({0} != {1})"),
    "and": Form(_logic("&", "&&"), "({0} & {1})"),
    "or": Form(_logic("|", "||"), "({0} | {1})"),
    "not": Form(lambda args, vector: f"({'~' if vector else '!'}{args[0].text})", "(!{0})"),
    "select": Form(_select, "({0} ? {c}{1} : {c}{2})"),
    "copy": Form(lambda args, vector: args[0].text, "{0}"),
}


@dataclass(frozen=True, slots=True)
class Reduction:
    """One step of a reduction, by the function that it repeats: ``text`` of vectors, ``number`` of numbers in scans, and the function of
    the headers that reduces the lanes of a vector."""

    text: str
    lanes: str
    number: str


REDUCTIONS = {
    "+": Reduction("{0} + {1}", "sum_of", "{0} + {1}"),
    "*": Reduction("{0} * {1}", "prod_of", "{0} * {1}"),
    "max": Reduction("maximum({0}, {1})", "max_of", "std::max({0}, {1})"),
    "min": Reduction("minimum({0}, {1})", "min_of", "std::min({0}, {1})"),
    "or": Reduction("{0} | {1}", "any_of", "{0} | {1}"),
}
assert FORMS.keys() == FUNCTIONS.keys(), "every function of plans has a C++ form"


def applied(fn: str, args: Sequence[Ref], dtype: DType) -> Ref:
    """``fn(*args)``, a result of type ``dtype``; a vector if any operand is."""
    vector, f = any(a.vector for a in args), FUNCTIONS[fn]
    values = f.values(args)
    kind = f.computes_in([a.dtype for a in values])
    if kind is not None:
        values = [converted(a, kind) for a in values]
    args = [*args[: len(args) - len(values)], *values]
    found = Ref(FORMS[fn].text(args, vector), f.gives([a.dtype for a in values]), vector)
    return converted(found, dtype)
