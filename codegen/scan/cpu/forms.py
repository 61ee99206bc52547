"""The scalar functions of the IR, types, names and numbers as C++ text. Loops over points are left to the compiler to vectorise, so
that a form is one expression of numbers: ``T`` is the type of accumulation, ``{c}`` converts to the type of the result."""

from __future__ import annotations

import math
import re

from einfuse.ir.functions import FUNCTIONS

TYPES = {"float": "T", "int": "long", "bool": "bool"}
FORMS = {
    "+": "({0} + {1})",
    "-": "({0} - {1})",
    "*": "({0} * {1})",
    "/": "((T){0} / (T){1})",
    "//": "floor_div({0}, {1})",
    "%": "floor_mod({0}, {1})",
    "^": "std::pow((T){0}, (T){1})",
    "hash": "hashed({0}, {1})",
    "neg": "(-{0})",
    "abs": "std::abs({0})",
    "max": "std::max({c}{0}, {c}{1})",
    "min": "std::min({c}{0}, {c}{1})",
    "sign": "sign({0})",
    "exp": "fast_exp((T){0})",
    "exp2": "fast_exp((T){0} * (T)0.693147180559945309)",
    "log": "std::log((T){0})",
    "log2": "std::log2((T){0})",
    "log1p": "std::log1p((T){0})",
    "sqrt": "std::sqrt((T){0})",
    "rsqrt": "(1 / std::sqrt((T){0}))",
    "tanh": "std::tanh((T){0})",
    "sigmoid": "sigmoid((T){0})",
    "softplus": "softplus((T){0})",
    "erf": "std::erf((T){0})",
    "sin": "std::sin((T){0})",
    "cos": "std::cos((T){0})",
    "floor": "((long)std::floor({0}))",
    "float": "((T){0})",
    "int": "((long){0})",
    "<": "({0} < {1})",
    "<=": "({0} <= {1})",
    ">": "({0} > {1})",
    ">=": "({0} >= {1})",
    "==": "({0} == {1})",
    "!=": "({0} != {1})",
    "and": "({0} & {1})",
    "or": "({0} | {1})",
    "not": "(!{0})",
    "select": "({0} ? {c}{1} : {c}{2})",
    "copy": "{0}",
    "stop": "{0}",
}
assert FORMS.keys() == FUNCTIONS.keys() | {"copy"}, "every scalar function of the IR has a form"


def identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def number(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value}L"
    if not math.isfinite(value):
        return f"({'-' if value < 0 else ''}(T)INFINITY)"
    return f"(T){value!r}" if value >= 0 else f"((T){value!r})"
