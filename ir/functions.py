"""Scalar functions: one object for each, which holds all that the compiler knows of it, and calls of them. The only list of them.

Type checks, the interpreter, analyses, derivatives and the rank test ask the object. What a back end writes for a function is one line of
its own table (``codegen/*/functions.py``). CONTRIBUTING.md shows how to add one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from einfuse.ir.nodes import DType, Expr, Scalar

Operand = TypeVar("Operand")
Meaning = str | Callable[..., Any]
"""The name of a function in a library, or a function of the library and the operands."""


def _never(signs: Sequence[bool]) -> bool:
    return False


def _always(signs: Sequence[bool]) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Function:
    """A scalar function.

    ``takes`` is the type of its operands: "bool", "int", "numeric", "any", or "select" (a condition and two values). ``result`` is a type,
    or "same" for the wider of the operands. ``fold`` is its value on Python numbers, and defines it.
    """

    name: str
    arity: int
    takes: DType | str
    result: DType | str
    fold: Callable[..., Scalar]
    infix: str | None = None
    torch: Meaning = ""
    """Its value on tensors; "" is the function of the same name."""
    numpy: Meaning = ""
    """Its value on numpy arrays, as for ``torch``."""
    sympy: Meaning | None = None
    """Its value on sympy's expressions; None where algebra is not to look into it."""
    differential: Callable[[Expr, Sequence[Expr]], Expr] | None = None
    """The derivative of a call, given the call and the derivatives of its operands; None where that is 0 almost everywhere.
    A kink takes the derivative of one side."""
    simplify: Callable[..., Expr | None] | None = None
    """A simpler expression of the same value for some operands, else None."""
    cases: Callable[..., tuple[Expr, Expr, Expr]] | None = None
    """A condition, and what the function is where it holds and where not: for functions made of branches."""
    nonnegative: Callable[[Sequence[bool]], bool] = _never
    """Whether the value is 0 or more, given which of its `values` are."""
    limits: tuple[float, float] = (-math.inf, math.inf)
    """No value lies outside of these."""
    rises: bool = False
    """Whether the value never falls as the operand grows."""
    pole: float | None = None
    """The (first) operand below which the value is no real number; at it, that value may be infinite."""

    @property
    def special(self) -> bool:
        """Whether it takes a machine many instructions, or a unit of which there are few: divisions, powers, transcendental functions."""
        return self.takes == "numeric" and self.result == "float"

    @property
    def keeps_zero(self) -> bool:
        """Whether it has one operand and maps 0 to 0."""
        try:
            return self.arity == 1 and self.result != "bool" and self.fold(0) == 0
        except (ArithmeticError, ValueError):
            return False

    def of(self, library: Any) -> Callable[..., Any]:
        """Its value in torch, numpy or sympy, whichever module is given."""
        meaning: Meaning = getattr(self, library.__name__)
        return partial(meaning, library) if callable(meaning) else getattr(library, meaning or self.name)

    def values(self, operands: Sequence[Operand]) -> Sequence[Operand]:
        """The operands that the result is made of: all, but for the condition of a select."""
        return operands[1:] if self.takes == "select" else operands

    def computes_in(self, types: Sequence[DType]) -> DType | None:
        """The type that its `values`, which have these types, are brought to first; None keeps each as it is."""
        if self.takes == "bool" or (self.takes == "any" and self.arity == 1):
            return None
        return "float" if self.takes == "numeric" and self.result in ("float", "int") else widest(types)

    def gives(self, types: Sequence[DType]) -> DType:
        """The type of the result, given those of its `values`."""
        return widest(types) if self.result == "same" else self.result  # type: ignore[return-value]  # every other one is a DType


def widest(types: Sequence[DType]) -> DType:
    """The type that holds values of all of these."""
    return "float" if "float" in types else "int" if "int" in types else "bool"


# -- calls ---------------------------------------------------------------------------------------------------------------------------


def const(value: Scalar) -> Expr:
    return Expr("const", (), value)


ZERO, ONE, TRUE, FALSE = const(0), const(1), const(True), const(False)


def is_const(e: Expr, value: Scalar | None = None) -> bool:
    return e.op == "const" and (value is None or (e.value == value and isinstance(e.value, bool) == isinstance(value, bool)))


def call(op: str, *args: Expr) -> Expr:
    """``op(*args)`` with constants folded and neutral elements dropped; never changes a value."""
    f = FUNCTIONS[op]
    if all(a.op == "const" for a in args):
        try:
            value = f.fold(*(a.value for a in args))
        except (ArithmeticError, ValueError):
            return Expr(op, args)  # 1/0 stays, and is an error or an inf where it is evaluated
        if not isinstance(value, complex) and not (isinstance(value, float) and math.isnan(value)):
            return const(value)
    simpler = f.simplify(*args) if f.simplify else None
    return Expr(op, args) if simpler is None else simpler


# -- rules ---------------------------------------------------------------------------------------------------------------------------


def _add(a: Expr, b: Expr) -> Expr | None:
    if is_const(a, 0):
        return b
    if is_const(b, 0):
        return a
    return call("-", a, b.args[0]) if b.op == "neg" else None


def _sub(a: Expr, b: Expr) -> Expr | None:
    if is_const(b, 0):
        return a
    if is_const(a, 0):
        return call("neg", b)
    return call("+", a, b.args[0]) if b.op == "neg" else None


def _mul(a: Expr, b: Expr) -> Expr | None:
    if is_const(a, 1):
        return b
    if is_const(b, 1):
        return a
    if is_const(a, 0) or is_const(b, 0):
        return ZERO  # the language has no inf literal: 0 * x is 0 wherever x is finite
    if is_const(a, -1):
        return call("neg", b)
    return call("neg", a) if is_const(b, -1) else None


def _div(a: Expr, b: Expr) -> Expr | None:
    if is_const(a, 0):
        return ZERO
    return a if is_const(b, 1) else None


def _and(a: Expr, b: Expr) -> Expr | None:
    if is_const(a, False) or is_const(b, False):
        return FALSE
    return b if is_const(a, True) or a == b else a if is_const(b, True) else None


def _or(a: Expr, b: Expr) -> Expr | None:
    if is_const(a, True) or is_const(b, True):
        return TRUE
    return b if is_const(a, False) or a == b else a if is_const(b, False) else None


def _select(c: Expr, a: Expr, b: Expr) -> Expr | None:
    if c.op == "const":
        return a if c.value else b
    return a if a == b else None


def _undone(op: str) -> Callable[[Expr], Expr | None]:
    """Of a function that is its own inverse."""
    return lambda a: a.args[0] if a.op == op else None


def _times(a: Expr, b: Expr) -> Expr:
    return call("*", a, b)


def _chain(slope: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Sequence[Expr]], Expr]:
    """The differential of a function of one operand, given its slope at the operand ``a``, where it is ``f``."""
    return lambda e, d: _times(slope(e.args[0], e), d[0])


def _d_quotient(e: Expr, d: Sequence[Expr]) -> Expr:
    b = e.args[1]
    return call("-", call("/", d[0], b), call("/", _times(e, d[1]), b))


def _d_power(e: Expr, d: Sequence[Expr]) -> Expr:
    """Of ``a ^ b``; 0 to a power stays 0 as the power grows."""
    (a, b), (da, db) = e.args, d
    of_base = ZERO if is_const(da, 0) else _times(_times(b, call("^", a, call("-", b, ONE))), da)
    growth = call("select", call(">", a, ZERO), _times(e, call("log", a)), ZERO)
    return of_base if is_const(db, 0) else call("+", of_base, _times(growth, db))


def _chosen(op: str) -> dict[str, Any]:
    """The larger or the smaller of two operands: the first one where it compares so with the second."""
    return {
        "differential": lambda e, d: call("select", call(op, *e.args), *d),
        "cases": lambda a, b: (call(op, a, b), a, b),
    }


# -- values --------------------------------------------------------------------------------------------------------------------------


def _sign(x: float) -> int:
    return (x > 0) - (x < 0)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _mixed(x: Any) -> Any:
    """32 bits, well stirred (two rounds of multiply and shift: a bijection). In arrays of 64 bits products wrap; the low 32 bits are right."""
    x = (x ^ x >> 16) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ x >> 15) * 0x846CA68B & 0xFFFFFFFF
    return x ^ x >> 16


def hashed(key: Any, counter: Any) -> Any:
    """31 bits made of the low 32 bits of two integers: the same on every back end, and on arrays of 64 bits."""
    return _mixed((_mixed((key ^ 0x9E3779B9) & 0xFFFFFFFF) ^ counter) & 0xFFFFFFFF) & 0x7FFFFFFF


def _itself(x: Any) -> Any:
    return x


def _plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A meaning that needs nothing of the library."""
    return lambda library, *args: fn(*args)


def _alike(name: str) -> Callable[..., Any]:
    """A function of torch on tensors of the last two operands' common type."""

    def meaning(torch: Any, *args: Any) -> Any:
        dtype = torch.promote_types(args[-2].dtype, args[-1].dtype)
        return getattr(torch, name)(*args[:-2], *(a.to(dtype) for a in args[-2:]))

    return meaning


def _of_two(compare: str) -> Callable[..., Any]:
    """The larger or the smaller of two tensors, of equal ones the first: its gradient too, as ``differential`` says (torch halves it)."""

    def meaning(torch: Any, a: Any, b: Any) -> Any:
        first = getattr(torch, compare)(a, b)
        return _alike("where")(torch, first | a.isnan() if a.is_floating_point() else first, a, b)

    return meaning


def _number(torch: Any, a: Any) -> Any:
    return a if a.is_floating_point() else a.to(torch.get_default_dtype())


def _arithmetic(name: str, fold: Callable[..., Scalar], torch: str, **more: Any) -> Function:
    return Function(name, 2, "numeric", "same", fold, name, torch, _plain(fold), _plain(fold), **more)


def _float(name: str, fold: Callable[[float], float], slope: Callable[[Expr, Expr], Expr], **more: Any) -> Function:
    """A function of one number."""
    return Function(name, 1, "numeric", "float", fold, differential=_chain(slope), **more)


def _comparison(name: str, fold: Callable[..., bool], torch: str, numpy: str, sympy: str) -> Function:
    return Function(name, 2, "numeric", "bool", fold, name, torch, numpy, sympy)


# fmt: off
_TABLE = (
    _arithmetic("+", operator.add, "add", differential=lambda e, d: call("+", *d), simplify=_add, nonnegative=all),
    _arithmetic("-", operator.sub, "sub", differential=lambda e, d: call("-", *d), simplify=_sub),
    _arithmetic("*", operator.mul, "mul", simplify=_mul, nonnegative=all,
                differential=lambda e, d: call("+", _times(d[0], e.args[1]), _times(e.args[0], d[1]))),
    Function("/", 2, "numeric", "float", operator.truediv, "/", "div", "true_divide", _plain(operator.truediv),
             _d_quotient, _div, nonnegative=all),
    Function("//", 2, "int", "int", operator.floordiv, "//", "floor_divide", "floor_divide", nonnegative=all),
    Function("%", 2, "int", "int", operator.mod, "%", "remainder", "remainder", nonnegative=all),
    Function("hash", 2, "int", "int", hashed, None, lambda torch, a, b: hashed(a.long(), b.long()),
             lambda np, a, b: hashed(np.asarray(a, np.int64), np.asarray(b, np.int64)), nonnegative=_always, limits=(0, 2**31 - 1)),
    Function("^", 2, "numeric", "float", lambda x, y: float(x) ** y, "^", lambda torch, a, b: torch.pow(_number(torch, a), b),
             lambda np, a, b: np.power(np.asarray(a, float), b), _plain(operator.pow), _d_power,
             lambda a, b: a if is_const(b, 1) else ONE if is_const(b, 0) else None, nonnegative=lambda signs: signs[0], pole=0),
    Function("neg", 1, "numeric", "same", operator.neg, None, "neg", "negative", _plain(operator.neg),
             _chain(lambda a, f: const(-1)), _undone("neg")),
    Function("abs", 1, "numeric", "same", abs, sympy="Abs", differential=_chain(lambda a, f: call("sign", a)),
             cases=lambda a: (call(">=", a, ZERO), a, call("neg", a)), nonnegative=_always),
    Function("max", 2, "numeric", "same", max, None, _of_two("ge"), "maximum", "Max", **_chosen(">="), nonnegative=any),
    Function("min", 2, "numeric", "same", min, None, _of_two("le"), "minimum", "Min", **_chosen("<="), nonnegative=all),
    Function("sign", 1, "numeric", "same", _sign, sympy="sign", limits=(-1, 1), nonnegative=all,
             cases=lambda a: (call(">=", a, ZERO), ONE, const(-1))),
    Function("stop", 1, "numeric", "same", _itself, None, lambda torch, a: a.detach(), _plain(_itself), _plain(_itself),
             nonnegative=all),  # whose derivative is 0
    _float("exp", math.exp, lambda a, f: f, sympy="exp", nonnegative=_always, limits=(0, math.inf), rises=True),
    _float("exp2", lambda x: 2.0**x, lambda a, f: _times(f, const(math.log(2))), sympy=_plain(lambda a: 2**a),
           nonnegative=_always, limits=(0, math.inf), rises=True),
    _float("log", math.log, lambda a, f: call("/", ONE, a), sympy="log", rises=True, pole=0),
    _float("log2", math.log2, lambda a, f: call("/", const(1 / math.log(2)), a), sympy=lambda sp, a: sp.log(a) / sp.log(2),
           rises=True, pole=0),
    _float("log1p", math.log1p, lambda a, f: call("/", ONE, call("+", ONE, a)), sympy=lambda sp, a: sp.log(1 + a),
           rises=True, pole=-1),
    _float("sqrt", math.sqrt, lambda a, f: call("/", const(0.5), f), sympy="sqrt",
           nonnegative=_always, limits=(0, math.inf), rises=True, pole=0),
    _float("rsqrt", lambda x: 1 / math.sqrt(x), lambda a, f: call("/", _times(const(-0.5), f), a),
           numpy=lambda np, a: 1 / np.sqrt(a), sympy=lambda sp, a: 1 / sp.sqrt(a),
           nonnegative=_always, limits=(0, math.inf), pole=0),
    _float("tanh", math.tanh, lambda a, f: call("-", ONE, _times(f, f)), sympy="tanh", nonnegative=all, limits=(-1, 1), rises=True),
    _float("sigmoid", _sigmoid, lambda a, f: _times(f, call("-", ONE, f)), numpy=lambda np, a: np.exp(-np.logaddexp(0, -a)),
           sympy=lambda sp, a: 1 / (1 + sp.exp(-a)), nonnegative=_always, limits=(0, 1), rises=True),
    _float("softplus", _softplus, lambda a, f: call("sigmoid", a), torch=lambda torch, a: -torch.nn.functional.logsigmoid(-a),
           numpy=lambda np, a: np.logaddexp(0, a), sympy=lambda sp, a: sp.log(1 + sp.exp(a)),
           nonnegative=_always, limits=(0, math.inf), rises=True),
    _float("erf", math.erf, lambda a, f: _times(const(2 / math.sqrt(math.pi)), call("exp", call("neg", _times(a, a)))),
           numpy=lambda np, a: np.vectorize(math.erf, otypes=[float])(a), sympy="erf",
           nonnegative=all, limits=(-1, 1), rises=True),
    _float("sin", math.sin, lambda a, f: call("cos", a), sympy="sin", limits=(-1, 1)),
    _float("cos", math.cos, lambda a, f: call("neg", call("sin", a)), sympy="cos", limits=(-1, 1)),
    Function("floor", 1, "numeric", "int", math.floor, None, lambda torch, a: torch.floor(a).to(torch.int64),
             lambda np, a: np.floor(a).astype(np.int64), nonnegative=all),
    Function("float", 1, "any", "float", float, None, _number, lambda np, a: np.asarray(a, float), _plain(_itself),
             _chain(lambda a, f: ONE), nonnegative=all),
    Function("int", 1, "any", "int", int, None, lambda torch, a: a.to(torch.int64),
             lambda np, a: np.asarray(a).astype(np.int64), nonnegative=all),
    *(_comparison(*row) for row in (
        ("<", operator.lt, "lt", "less", "Lt"), ("<=", operator.le, "le", "less_equal", "Le"),
        (">", operator.gt, "gt", "greater", "Gt"), (">=", operator.ge, "ge", "greater_equal", "Ge"))),
    Function("==", 2, "any", "bool", operator.eq, "==", "eq", "equal"),
    Function("!=", 2, "any", "bool", operator.ne, "!=", "ne", "not_equal"),
    Function("and", 2, "bool", "bool", lambda a, b: a and b, "and", "logical_and", "logical_and", "And", simplify=_and),
    Function("or", 2, "bool", "bool", lambda a, b: a or b, "or", "logical_or", "logical_or", "Or", simplify=_or),
    Function("not", 1, "bool", "bool", operator.not_, None, "logical_not", "logical_not", "Not", simplify=_undone("not")),
    Function("select", 3, "select", "same", lambda c, a, b: a if c else b, None, _alike("where"), "where",
             lambda sp, c, a, b: sp.Piecewise((a, c), (b, True)), lambda e, d: call("select", e.args[0], *d[1:]), _select,
             lambda c, a, b: (c, a, b), all),
)
# fmt: on
FUNCTIONS: dict[str, Function] = {f.name: f for f in _TABLE}
COPY = Function("copy", 1, "any", "same", _itself, torch=_plain(_itself), nonnegative=all)
"""The identity: in plans, where a value gets another name or more ranks. No function of the language."""
