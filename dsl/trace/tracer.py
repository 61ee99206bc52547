"""The loop that runs a function on unknown numbers, and what is said where that cannot be done.

A front end is a `Tracer` with values of its own: it says what a function is called with, what an operation gives, and what is captured.
"""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from einfuse.dsl.trace.place import defined, here, name, raised_at
from einfuse.dsl.trace.traced import Traced
from einfuse.ir import MAX_OPERATIONS, SpecError, TooLargeError

V = TypeVar("V", bound=Traced)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_RAISED = (TypeError, ValueError, ArithmeticError, RuntimeError, LookupError, AttributeError)
"""What Python, numpy and torch say of a traced number that they cannot use."""
_TOO_LARGE = f"this function makes an expression of too many parts, more than {MAX_OPERATIONS}"


class Tracer(Generic[V]):
    """One front end: the words of its messages, its operations, and how it runs a function."""

    library: ClassVar[str]
    """Whose functions compute with traced numbers."""
    operations: ClassVar[Mapping[str, Callable[..., Any]]]
    """``(tracer, *operands) -> V`` by the name of an operator, a method or a function."""
    coordinates: ClassVar[tuple[str, str, str, str]]
    defaults: ClassVar[bool]
    """May a function have more positional arguments, with defaults?"""
    masks: ClassVar[str]
    tables: ClassVar[str]
    smaller: ClassVar[str]
    captured: ClassVar[str]
    known: ClassVar[str]
    """Hints: where masks are given, how tables are read, how to make an expression smaller, how a function gets more arguments, and what
    operations there are."""

    def call(self, fn: Callable[..., Any], first: tuple[V, ...]) -> V:
        """``fn(*first, *coordinates)``, seen to be pure."""
        raise NotImplementedError

    def value(self, x: object) -> V:
        """Anything a function may compute with as a traced number. Raises SpecError for the rest."""
        raise NotImplementedError

    # -- running ---------------------------------------------------------------------------------------------------------

    def run(self, fn: Callable[..., Any], *first: V) -> V:
        """What ``fn(*first, b, h, i, j)`` computes. Raises SpecError that names the operation and the line where it cannot be traced."""
        try:
            self._check_signature(fn, 4 + len(first))
            return self.call(fn, first)
        except _RAISED as error:
            said = SpecError(
                f"`{name(fn)}` cannot be traced: {type(error).__name__}: {error}",
                raised_at(error) or defined(fn),
                f"a traced function computes with numbers, functions of {self.library} and tables; {self.tables}",
            )
            raise _shown(said) from error
        except TooLargeError as error:
            raise _shown(SpecError(_TOO_LARGE, raised_at(error), self.smaller)) from None
        except SpecError as error:
            raise _shown(error if error.loc is not None else SpecError(error.message, defined(fn), error.hint)) from None

    def returned(self, fn: Callable[..., Any], result: object) -> V:
        """The result of a function. Raises SpecError where it is not one number."""
        if result is None or isinstance(result, tuple | list | dict):
            found = "nothing" if result is None else f"a {type(result).__name__}"
            raise SpecError(f"`{name(fn)}` returns {found}", defined(fn), "return the new score, or the condition: one number")
        return self.value(result)

    def _check_signature(self, fn: Callable[..., Any], expected: int) -> None:
        """Raises SpecError where a function does not take the arguments of a score (or mask) function."""
        if type(fn) is FunctionType and fn.__code__.co_argcount == expected and not fn.__defaults__:
            return
        parameters = list(inspect.signature(fn).parameters.values())
        most = sum(p.kind in _POSITIONAL for p in parameters)
        least = sum(p.kind in _POSITIONAL and p.default is p.empty for p in parameters)
        more = any(p.kind is p.VAR_POSITIONAL for p in parameters) or (least < expected <= most and least != 4)
        if least == expected == most or (self.defaults and (least == expected or more)):
            return
        takes = {n: ", ".join(("score", *self.coordinates)[5 - n :]) for n in (4, 5)}
        other = {4: "; this looks like a score function", 5: f"; this looks like a mask function: {self.masks}"}
        count = least if self.defaults else most
        said = (
            f"a {'mask' if expected == 4 else 'score'} function takes ({takes[expected]}), `{name(fn)}` takes {count} arguments"
        )
        raise SpecError(said + (other[expected] if count in (4, 5) else ""), defined(fn), self.captured)

    # -- operations ------------------------------------------------------------------------------------------------------

    def knows(self, operation: str) -> bool:
        return operation in self.operations

    def apply(self, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """An operator, a method or a function, by name."""
        plain = name.strip("_") if name.startswith("__") else name
        operation = self.operations.get(plain)
        if kwargs.get("inplace"):
            self.refuse(f"`{plain}` with inplace=True works in place, which a traced function cannot", "leave inplace out")
        if operation is None:
            self.refuse_operation(plain)
        try:
            return operation(self, *args, **kwargs)
        except TypeError as error:
            if error.__traceback__ is not None and error.__traceback__.tb_next is None:  # the arguments did not fit
                what = str(error).partition("() ")[2] or error  # without the name of our function
                self.refuse(f"`{plain}` with these arguments cannot be traced: {what}", f"call it as {self.library} has it")
            raise

    def refuse_operation(self, plain: str) -> NoReturn:
        """Raises SpecError for an operation that is not among those known."""
        if plain.endswith("_") and self.knows(plain[:-1]):
            self.refuse(f"`{plain}` works in place, which a traced function cannot", f"use `{plain[:-1]}`")
        self.refuse(f"`{plain}` cannot be traced", self.known)

    def within(self, nodes: int) -> int:
        """The number of parts of an expression. Raises SpecError where there are too many."""
        if nodes > MAX_OPERATIONS:
            self.refuse(_TOO_LARGE, self.smaller)
        return nodes

    # -- messages --------------------------------------------------------------------------------------------------------

    def refuse(self, message: str, hint: str = "") -> NoReturn:
        """Raises SpecError with the place in the user's function."""
        raise SpecError(message, here(), hint)

    def python_number(self, x: object) -> object:
        """One of numpy as one of Python. Raises SpecError for anything else."""
        if type(x).__module__ == "numpy" and getattr(x, "ndim", None) == 0 and hasattr(x, "item"):
            return x.item()
        self.refuse(f"a traced function computes with numbers and tables, found {type(x).__name__}", self.tables)


def _shown(error: SpecError) -> SpecError:
    """The error with the text that it is in."""
    return error.within("".join(linecache.getlines(error.loc.file)) if error.loc is not None else "")
