"""What a traced function gets instead of scalar tensors: a number, known by its expression.

A `Value` does what a scalar tensor does in a score or mask function: operators, the methods of tensors, and every function of torch
that is among `OPERATIONS`. What needs a value (``if``, ``float()``) raises SpecError with the place in the user's function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import torch

from einfuse.flex.bounds import UNKNOWN, Bounds
from einfuse.ir import Expr

if TYPE_CHECKING:
    from einfuse.flex.integers import Fields
    from einfuse.flex.tracer import Tracer

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


class Value:
    """A number (or, with ``axis``, a short vector over a rank of its own) at one point of the scores.

    ``dtype`` is torch's, all floats being of the tracer's; ``bounds`` are those of the number where it is not minus infinity.
    ``alive`` is the condition under which it is not; None: always. ``fields`` are the known bits of an integer. ``weak`` is a Python
    number, which takes the dtype of what it meets. ``nodes`` counts the parts of the expression.
    """

    __slots__ = ("alive", "axis", "bounds", "dtype", "expr", "fields", "nodes", "tracer", "weak")
    __hash__ = object.__hash__

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

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A method of tensors."""
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.tracer.apply(name, (self, *args), kwargs)

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.apply("getitem", (self, index), {})

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tracer = next(x.tracer for x in flat(args, kwargs or {}) if isinstance(x, Value | Part))
        return tracer.apply(func.__name__, args, kwargs or {})

    def __repr__(self) -> str:
        return f"<{self.kind} in a traced function>"

    # -- what a symbol cannot do -----------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        self.tracer.refuse(
            "the value of a traced number is not known",
            "write torch.where(condition, a, b) instead of if, and & | ~ instead of and, or, not",
        )

    def __float__(self) -> float:
        self.tracer.refuse("a traced number has no value", "use the functions of torch, not those of math")

    def __int__(self) -> int:
        self.tracer.refuse(
            "a traced number has no value", "only tensors can be indexed by it: move lists and arrays into a tensor"
        )

    __index__ = __int__

    def __iter__(self) -> NoReturn:
        self.tracer.refuse("a traced number cannot be iterated over", "index it: x[0], x[1]")

    def __len__(self) -> int:
        if self.axis is None:
            self.tracer.refuse("a traced number has no length", "")
        return self.tracer.length(self.axis)

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self.tracer.refuse("a traced function cannot assign to parts of a number", "make a new one with torch.where")


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


def flat(args: Any, kwargs: Any) -> list[Any]:
    """The arguments of a call, with tuples and lists opened."""
    out: list[Any] = []
    for x in (*args, *kwargs.values()):
        out += flat(x, {}) if isinstance(x, tuple | list) else [x]
    return out


def _forward(name: str) -> Callable[..., Any]:
    def run(self: Value, other: Any) -> Any:
        return self.tracer.apply(name, (self, other), {})

    return run


def _reflected(name: str) -> Callable[..., Any]:
    def run(self: Value, other: Any) -> Any:
        return self.tracer.apply(name, (other, self), {})

    return run


def _unary(name: str) -> Callable[..., Any]:
    def run(self: Value) -> Any:
        return self.tracer.apply(name, (self,), {})

    return run


for _dunder, _name in (
    *(("add", "add"), ("sub", "sub"), ("mul", "mul"), ("truediv", "div"), ("floordiv", "floor_divide"), ("mod", "remainder")),
    *(("pow", "pow"), ("and", "bitwise_and"), ("or", "bitwise_or"), ("xor", "bitwise_xor"), ("matmul", "dot")),
    *(("lshift", "bitwise_left_shift"), ("rshift", "bitwise_right_shift")),
):
    setattr(Value, f"__{_dunder}__", _forward(_name))
    setattr(Value, f"__r{_dunder}__", _reflected(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Value, f"__{_name}__", _forward(_name))
for _dunder, _name in (("neg", "neg"), ("pos", "positive"), ("abs", "abs"), ("invert", "bitwise_not")):
    setattr(Value, f"__{_dunder}__", _unary(_name))
