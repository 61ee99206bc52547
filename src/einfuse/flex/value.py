"""What a traced function gets instead of scalar tensors: a number, known by its expression.

A `Value` does what a scalar tensor does in a score or mask function: operators, the methods of tensors, and every function of torch
that is among `OPERATIONS`. What needs a value (``if``, ``float()``) raises SpecError with the place in the user's function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import torch

from einfuse.dsl.trace import Traced
from einfuse.ir import Expr
from einfuse.ir.functions import FUNCTIONS, Function

if TYPE_CHECKING:
    from einfuse.flex.integers import Fields
    from einfuse.flex.tracer import Tracer

Bounds = tuple[float, float]
"""Those of integers are ints, or infinite."""
UNKNOWN: Bounds = (-math.inf, math.inf)
CONDITION: Bounds = (0, 1)
Kind = Literal["bool", "int", "float"]
Operation = Callable[..., Any]
"""``(tracer, *arguments as given to torch) -> Value``"""
OPERATIONS: dict[str, Operation] = {}
"""The functions and methods of torch that a trace knows, by name. A module that defines some adds them when it is imported."""
F = TypeVar("F", bound=Operation)


def operation(*names: str) -> Callable[[F], F]:
    """Makes a function known by the names of the functions and methods of torch that it stands for."""

    def known(fn: F) -> F:
        OPERATIONS.update(dict.fromkeys(names, fn))
        return fn

    return known


def kind_of(dtype: torch.dtype) -> Kind:
    return "float" if dtype.is_floating_point else "bool" if dtype == torch.bool else "int"


class Value(Traced):
    """A number (or, with ``axis``, a short vector over a rank of its own) at one point of the scores.

    ``dtype`` is torch's, all floats being of the tracer's; ``bounds`` are those of the number where it is not minus infinity.
    ``alive`` is the condition under which it is not; None: always. ``fields`` are the known bits of an integer. ``weak`` is a Python
    number, which takes the dtype of what it meets. ``nodes`` counts the parts of the expression.
    """

    __slots__ = ("alive", "axis", "bounds", "dtype", "expr", "fields", "nodes", "tracer", "weak")
    tracer: Tracer

    def __init__(
        self,
        tracer: Tracer,
        expr: Expr,
        dtype: torch.dtype,
        axis: str | None = None,
        alive: Expr | None = None,
        *,
        bounds: Bounds = UNKNOWN,
        fields: Fields | None = None,
        weak: bool = False,
        nodes: int = 1,
    ) -> None:
        self.tracer, self.expr, self.dtype, self.axis, self.alive = tracer, expr, dtype, axis, alive
        self.bounds, self.fields, self.weak, self.nodes = bounds, fields, weak, nodes

    @property
    def kind(self) -> Kind:
        return kind_of(self.dtype)

    # -- as a tensor -----------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self.tracer.device

    @property
    def shape(self) -> torch.Size:
        return torch.Size(()) if self.axis is None else torch.Size((self.tracer.length(self.axis),))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def size(self, dim: int | None = None) -> torch.Size | int:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def __repr__(self) -> str:
        return f"<{self.kind} in a traced function>"

    def __len__(self) -> int:
        return super().__len__() if self.axis is None else self.tracer.length(self.axis)


class Part:
    """A captured tensor of which only some axes have been indexed, and more than one is left."""

    __slots__ = ("indices", "tensor", "tracer")

    def __init__(self, tracer: Tracer, tensor: torch.Tensor, indices: tuple[Value, ...]) -> None:
        self.tracer, self.tensor, self.indices = tracer, tensor, indices

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.apply("getitem", (self, index), {})

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape[len(self.indices) :]

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Value.__torch_function__(func, types, args, kwargs)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self.tracer.refuse(
            f"`{name}` of a tensor with {len(self.shape)} axes left cannot be traced", "index the other axes as well"
        )


# -- the least and the greatest value, by interval arithmetic --------------------------------------------------------------------


def bounds_of(op: str, *operands: Bounds) -> Bounds:
    """The bounds of a function of the IR, from those of its operands."""
    rule, f = _RULES.get(op), FUNCTIONS.get(op)
    if rule is not None:
        found = rule(*operands)
    elif f is not None:
        found = _risen(f, *operands) if f.rises else f.limits
    else:
        found = UNKNOWN
    return UNKNOWN if any(x != x for x in found) else found  # an int may be too large for isnan


def hull(a: Bounds, b: Bounds) -> Bounds:
    return min(a[0], b[0]), max(a[1], b[1])


def _corners(fn: Callable[[float, float], float]) -> Callable[[Bounds, Bounds], Bounds]:
    """Of a function that is monotone in each operand."""

    def rule(a: Bounds, b: Bounds) -> Bounds:
        found = [fn(x, y) for x in a for y in b]
        return UNKNOWN if any(x != x for x in found) else (min(found), max(found))

    return rule


def _apart_from_zero(rule: Callable[[Bounds, Bounds], Bounds]) -> Callable[[Bounds, Bounds], Bounds]:
    return lambda a, b: rule(a, b) if b[0] > 0 or b[1] < 0 else UNKNOWN


def _floor_divide(x: float, y: float) -> float:
    if math.isinf(x):
        return x if y > 0 else -x
    return (-1 if (x < 0) != (y < 0) and x else 0) if math.isinf(y) else x // y


def _remainder(a: Bounds, b: Bounds) -> Bounds:
    if b[0] > 0:
        return a if 0 <= a[0] and a[1] < b[0] else (0, b[1] - 1)
    return (b[0] + 1, 0) if b[1] < 0 else UNKNOWN


def _abs(a: Bounds) -> Bounds:
    low, high = min(map(abs, a)), max(map(abs, a))
    return (0 if a[0] <= 0 <= a[1] else low), high


def _risen(f: Function, a: Bounds) -> Bounds:
    """Of a function that rises, between its limits; widened by what a kernel may round."""
    least, most = f.limits

    def end(x: float, outward: float) -> float:
        if math.isinf(x):
            return least if x < 0 else most
        try:
            value = float(f.fold(x))
            return min(max(value * (1 + math.copysign(1e-5, value) * outward), least), most)
        except (OverflowError, ValueError):
            return least if outward < 0 else most

    return end(a[0], -1), end(a[1], 1)


def _rounded(fn: Callable[[float], float]) -> Callable[[Bounds], Bounds]:
    return lambda a: (a[0] if math.isinf(a[0]) else fn(a[0]), a[1] if math.isinf(a[1]) else fn(a[1]))


_RULES: dict[str, Callable[..., Bounds]] = {
    "+": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "-": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "*": _corners(lambda x, y: x * y if x and y else 0),
    "/": _apart_from_zero(_corners(lambda x, y: 0.0 if math.isinf(y) else x / y)),
    "//": _apart_from_zero(_corners(_floor_divide)),
    "%": _remainder,
    "neg": lambda a: (-a[1], -a[0]),
    "abs": _abs,
    "sign": _rounded(lambda x: (x > 0) - (x < 0)),
    "max": lambda a, b: (max(a[0], b[0]), max(a[1], b[1])),
    "min": lambda a, b: (min(a[0], b[0]), min(a[1], b[1])),
    "select": lambda c, a, b: hull(a, b),
    "float": lambda a: a,
    "int": _rounded(math.trunc),
    "floor": _rounded(math.floor),
}
