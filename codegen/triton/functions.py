"""The scalar functions of the IR as Triton text: one entry for every function of plans.

Operands arrive as text that is already broadcast and converted to the type that the function computes in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from einfuse.codegen.plan import FUNCTIONS
from einfuse.ir import Scalar


@dataclass(frozen=True, slots=True)
class Operand:
    """An operand: text, the number it stands for if it is a literal, and whether it is an int known to be 0 or more."""

    text: str
    literal: Scalar | None = None
    nonnegative: bool = False

    @property
    def bare(self) -> str:
        """The text without brackets around all of it, for where an expression stands alone."""
        depth = 0
        for n, c in enumerate(self.text):
            depth += (c == "(") - (c == ")")
            if depth == 0 and n < len(self.text) - 1:
                return self.text
        return self.text[1:-1] if self.text.startswith("(") else self.text


@dataclass(frozen=True, slots=True)
class Target:
    """What the result is: its Triton type, and the helper functions the text calls (recorded as they are used).

    ``narrow`` is the storage dtype of the call.
    """

    type: str
    helpers: set[str]
    narrow: str = ""

    @property
    def exact(self) -> bool:
        """Whether nothing that is stored is narrower than the fp32 of the result, so that rounding the argument of a function would show."""
        return self.type == "tl.float32" and self.narrow == "f32"

    @property
    def short(self) -> bool:
        """Whether what is computed in fp32 is stored in 16 bits."""
        return self.type == "tl.float32" and self.narrow in ("bf16", "f16")

    def helper(self, name: str, *args: str) -> str:
        self.helpers.add(name)
        return f"{name}({', '.join(args)})"


Form = Callable[[tuple[Operand, ...], Target], str]


def _infix(sign: str) -> Form:
    return lambda args, to: f"{args[0].text} {sign} {args[1].text}"


def _call(name: str) -> Form:
    return lambda args, to: f"{name}({', '.join(a.bare for a in args)})"


def _helper(name: str) -> Form:
    return lambda args, to: to.helper(name, *(a.bare for a in args))


def _cast(args: tuple[Operand, ...], to: Target) -> str:
    return f"tl.cast({args[0].bare}, {to.type})"


def _copy(args: tuple[Operand, ...], to: Target) -> str:
    return args[0].text


def _integer(plain: str, helper: str) -> Form:
    """Division rounds towards zero in Triton and down in the IR: the same for operands that are never negative."""

    def form(args: tuple[Operand, ...], to: Target) -> str:
        if all(a.nonnegative for a in args):
            return f"{args[0].text} {plain} {args[1].text}"
        return to.helper(helper, args[0].bare, args[1].bare)

    return form


def _power(args: tuple[Operand, ...], to: Target) -> str:
    x, y = args
    if isinstance(y.literal, int | float) and x.literal is None:
        if y.literal in (1, 2, 3, 4):
            return " * ".join([x.text] * int(y.literal))
        if y.literal in (0.5, -0.5, -1):
            return {0.5: f"tl.sqrt({x.text})", -0.5: f"tl.rsqrt({x.text})", -1: f"1.0 / {x.text}"}[float(y.literal)]
    return to.helper("_pow", *(a.text if a.literal is None else f"tl.full([], {a.text}, {to.type})" for a in args))


def _hash(args: tuple[Operand, ...], to: Target) -> str:
    return to.helper("_hash", *(a.bare if a.literal is None else f"tl.full([], {a.text}, tl.int32)" for a in args))


def _select(args: tuple[Operand, ...], to: Target) -> str:
    c, a, b = args
    kept = f"tl.full([], {a.text}, {to.type})" if a.literal is not None and b.literal is not None else a.bare
    return f"tl.where({c.bare}, {kept}, {b.bare})"


def _sign(args: tuple[Operand, ...], to: Target) -> str:
    x = args[0].text
    return f"tl.cast({x} > 0, {to.type}) - tl.cast({x} < 0, {to.type})"


def _floor(args: tuple[Operand, ...], to: Target) -> str:
    return f"tl.cast(tl.floor({args[0].text}), {to.type})"


def _exponential(args: tuple[Operand, ...], to: Target) -> str:
    return to.helper("_exp", args[0].bare) if to.exact else f"tl.exp2({args[0].text} * LOG2E)"


def _sigmoid(args: tuple[Operand, ...], to: Target) -> str:
    turned = f"1.0 + tl.exp2({args[0].text} * -LOG2E)"
    return to.helper("_short_inverse", turned) if to.short else f"1.0 / ({turned})"


def _tanh(args: tuple[Operand, ...], to: Target) -> str:
    return to.helper("_short_tanh" if to.short else "_tanh", args[0].bare)


FORMS: dict[str, Form] = {
    "+": _infix("+"),
    "-": _infix("-"),
    "*": _infix("*"),
    "/": _infix("/"),
    "//": _integer("//", "_floor_div"),
    "%": _integer("%", "_floor_mod"),
    "hash": _hash,
    "^": _power,
    "neg": lambda args, to: f"-{args[0].text}",
    "abs": _call("tl.abs"),
    "max": _call("tl.maximum"),
    "min": _call("tl.minimum"),
    "sign": _sign,
    "stop": _copy,
    "exp": _exponential,
    "exp2": _call("tl.exp2"),
    "log": _call("tl.log"),
    "log2": _call("tl.log2"),
    "log1p": _helper("_log1p"),
    "sqrt": _call("tl.sqrt"),
    "rsqrt": _call("tl.rsqrt"),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _helper("_softplus"),
    "erf": _call("tl.erf"),
    "sin": lambda args, to: to.helper("_turn", args[0].bare, "0"),
    "cos": lambda args, to: to.helper("_turn", args[0].bare, "1"),
    "floor": _floor,
    "float": _cast,
    "int": _cast,
    "<": _infix("<"),
    "<=": _infix("<="),
    ">": _infix(">"),
    ">=": _infix(">="),
    "==": _infix("=="),
    "!=": _infix("!="),
    "and": _infix("&"),
    "or": _infix("|"),
    "not": lambda args, to: f"~{args[0].text}",
    "select": _select,
    "copy": _copy,
}
REDUCTIONS = {
    "+": "tl.sum({0}, axis={1})",
    "*": "tl.reduce({0}, {1}, _product)",
    "max": "tl.max({0}, axis={1})",
    "min": "tl.min({0}, axis={1})",
}
"""The reduction of a block along an axis by the function that it repeats."""


def reduction(combine: str, block: str, axis: int, axes: int, helpers: set[str]) -> str:
    """The reduction of a block of so many ``axes`` along one of them; see `_middle_sum` of the helpers."""
    text = "_middle_sum({0})" if (combine, axis, axes) == ("+", 1, 3) else REDUCTIONS[combine]
    helpers |= {x for x in ("_middle_sum", "_product") if x in text}
    return text.format(block, axis)


assert FORMS.keys() == FUNCTIONS.keys(), "every function of plans has a Triton form"
