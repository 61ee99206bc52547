"""A number that is not known while a function is traced: its operators, and what only a known number can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from einfuse.dsl.trace.tracer import Tracer


def _with_another(operation: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """The operator of an operation, and the one that is asked where the unknown number stands on the right."""

    def forward(self: Traced, other: object) -> Any:
        return self.tracer.apply(operation, (self, other), {})

    def reflected(self: Traced, other: object) -> Any:
        return self.tracer.apply(operation, (other, self), {})

    return forward, reflected


def _alone(operation: str) -> Callable[[Any], Any]:
    return lambda self: self.tracer.apply(operation, (self,), {})


UFUNCS = {
    **{"subtract": "sub", "multiply": "mul", "divide": "truediv", "true_divide": "truediv", "floor_divide": "floordiv"},
    **{"remainder": "mod", "power": "pow", "bitwise_and": "and", "bitwise_or": "or", "negative": "neg", "absolute": "abs"},
    **{"less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq", "not_equal": "ne"},
}
"""The operations that numpy has other names for."""


class Traced:
    """An unknown number; its front end's `Tracer` says what operations on it give. Subclasses hold what is known of it."""

    __slots__ = ()
    __hash__ = object.__hash__
    tracer: Tracer[Any]

    # -- what it can do --------------------------------------------------------------------------------------------------

    __add__, __radd__ = _with_another("add")
    __sub__, __rsub__ = _with_another("sub")
    __mul__, __rmul__ = _with_another("mul")
    __truediv__, __rtruediv__ = _with_another("truediv")
    __floordiv__, __rfloordiv__ = _with_another("floordiv")
    __mod__, __rmod__ = _with_another("mod")
    __pow__, __rpow__ = _with_another("pow")
    __and__, __rand__ = _with_another("and")
    __or__, __ror__ = _with_another("or")
    __xor__, __rxor__ = _with_another("xor")
    __lshift__, __rlshift__ = _with_another("lshift")
    __rshift__, __rrshift__ = _with_another("rshift")
    __matmul__, __rmatmul__ = _with_another("matmul")
    __lt__, __gt__ = _with_another("lt")[0], _with_another("gt")[0]
    __le__, __ge__ = _with_another("le")[0], _with_another("ge")[0]
    __eq__, __ne__ = _with_another("eq")[0], _with_another("ne")[0]
    __neg__, __pos__ = _alone("neg"), _alone("pos")
    __abs__, __invert__ = _alone("abs"), _alone("invert")

    def __getitem__(self, index: Any) -> Any:
        return self.tracer.apply("getitem", (self, index), {})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """A method: the function of that name."""
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self.tracer.apply(name, (self, *args), kwargs)

    @classmethod
    def __torch_function__(cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _tracer_among(args, kwargs).apply(func.__name__, args, kwargs or {})

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """A function of numpy on single numbers, which is the one of that name."""
        name = UFUNCS.get(ufunc.__name__, ufunc.__name__)
        if method != "__call__" or kwargs or not self.tracer.knows(name):
            self._refuse_numpy(ufunc.__name__)
        return self.tracer.apply(name, args, {})

    # -- what only a known number can ------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        library = self.tracer.library
        self.tracer.refuse(
            "the value of a traced number is not known",
            f"write {library}.where(condition, a, b) instead of if, {library}.minimum and maximum instead of min and max, & | ~ "
            "instead of and, or, not, and (a < b) & (b < c) instead of a < b < c",
        )

    def __float__(self) -> float:
        library = self.tracer.library
        self.tracer.refuse(
            "a traced number has no value", f"use the functions of {library} ({library}.exp, ...), not those of math"
        )

    def __int__(self) -> int:
        self.tracer.refuse("a traced number has no value", f"round it with {self.tracer.library}.floor, or compare it")

    def __index__(self) -> int:
        self.tracer.refuse("a traced number has no value", f"{self.tracer.tables}; a loop needs a number that is known")

    def __round__(self, digits: int | None = None) -> int:
        return self.__int__()

    def __iter__(self) -> NoReturn:
        self.tracer.refuse("a traced number cannot be iterated over", "index what has parts, x[0] and x[1]; a number has none")

    def __len__(self) -> int:
        self.tracer.refuse("a traced number has no length", "lengths are numbers that the function captures")

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self.tracer.refuse(
            "a traced function cannot assign to parts of a number", f"make a new one with {self.tracer.library}.where"
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        """Also asked for an array of numpy that is indexed."""
        self.tracer.refuse("a traced number is no array of numpy", self.tracer.tables)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> NoReturn:
        self._refuse_numpy(func.__name__)

    def _refuse_numpy(self, function: str) -> NoReturn:
        self.tracer.refuse(f"`numpy.{function}` cannot be traced", f"use the functions of {self.tracer.library}")


def flat(args: Any, kwargs: Any) -> list[Any]:
    """The arguments of a call, with tuples and lists opened."""
    out: list[Any] = []
    for x in (*args, *kwargs.values()):
        out += flat(x, {}) if isinstance(x, tuple | list) else [x]
    return out


def _tracer_among(args: Any, kwargs: Any) -> Tracer[Any]:
    found: Tracer[Any] = next(x.tracer for x in flat(args, kwargs or {}) if hasattr(type(x), "tracer"))
    return found
