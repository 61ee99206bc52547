"""The scalar functions of the IR as torch text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from einfuse.codegen.plan import FUNCTIONS
from einfuse.ir import DType

FORMS: dict[str, str] = {
    "+": "{} + {}",
    "-": "{} - {}",
    "*": "{} * {}",
    "/": "{} / {}",
    "//": "torch.div({}, {}, rounding_mode='floor')",
    "%": "torch.remainder({}, {})",
    "hash": "hashed({}, {})",
    "^": "torch.pow({}, {})",
    "neg": "-{}",
    "abs": "{}.abs()",
    "max": "torch.maximum({}, {})",
    "min": "torch.minimum({}, {})",
    "sign": "{}.sign()",
    "stop": "{}",
    "exp": "{}.exp()",
    "exp2": "{}.exp2()",
    "log": "{}.log()",
    "log2": "{}.log2()",
    "log1p": "{}.log1p()",
    "sqrt": "{}.sqrt()",
    "rsqrt": "{}.rsqrt()",
    "tanh": "{}.tanh()",
    "sigmoid": "{}.sigmoid()",
    "softplus": "torch.logaddexp({0}, torch.zeros_like({0}))",
    "erf": "{}.erf()",
    "sin": "{}.sin()",
    "cos": "{}.cos()",
    "floor": "{}.floor()",
    "float": "{}",
    "int": "{}",
    "<": "{} < {}",
    "<=": "{} <= {}",
    ">": "{} > {}",
    ">=": "{} >= {}",
    "==": "{} == {}",
    "!=": "{} != {}",
    "and": "{} & {}",
    "or": "{} | {}",
    "not": "~{}",
    "select": "torch.where({}, {}, {})",
    "copy": "{}",
}
HASHED = """

def stirred(x):
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def hashed(key, counter):  # 31 bits made of the low 32 bits of two ints
    return stirred((stirred((key ^ 0x9E3779B9) & 0xFFFFFFFF) ^ counter) & 0xFFFFFFFF) & 0x7FFFFFFF"""
REDUCTIONS = {"+": "sum", "*": "prod", "max": "amax", "min": "amin"}
"""The method of a tensor that reduces it by a function."""
assert FORMS.keys() == FUNCTIONS.keys(), "every function of plans has a torch form"
KINDS: dict[DType, str] = {"float": "real", "int": "torch.int64", "bool": "torch.bool"}


def random(lines: Sequence[str]) -> list[str]:
    """The function that random numbers are made with, if ``lines`` call it."""
    return [HASHED] if any("hashed(" in line for line in lines) else []


def form(
    fn: str,
    args: Sequence[tuple[str, DType]],
    out: DType,
    forms: Mapping[str, str] = FORMS,
    kinds: Mapping[DType, str] = KINDS,
    cast: str = "to",
) -> str:
    """``fn(*args)`` as a tensor of type ``out``; operands are brought to the type the function computes in, by the method ``cast``."""
    f = FUNCTIONS[fn]
    types = [kind for _, kind in f.values(args)]
    wanted = f.computes_in(types)
    skipped = len(args) - len(types)
    texts = [
        name if wanted is None or kind == wanted or n < skipped else f"{name}.{cast}({kinds[wanted]})"
        for n, (name, kind) in enumerate(args)
    ]
    text = forms[fn].format(*texts)
    found = "bool" if f.result == "bool" else wanted or types[0]
    return text if found == out else f"({text}).{cast}({kinds[out]})"
