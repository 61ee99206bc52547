"""The functions of torch that a trace knows, by name. A module that defines some adds them when it is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Operation = Callable[..., Any]
"""``(tracer, *arguments as given to torch) -> Value``"""
OPERATIONS: dict[str, Operation] = {}
F = TypeVar("F", bound=Operation)


def operation(*names: str) -> Callable[[F], F]:
    """Makes a function known by the names of the functions and methods of torch that it stands for."""

    def known(fn: F) -> F:
        OPERATIONS.update(dict.fromkeys(names, fn))
        return fn

    return known
