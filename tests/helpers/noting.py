"""Functions that are watched: every call is noted, and goes on as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def noting(seen: list[T], note: Callable[P, T], then: Callable[P, R]) -> Callable[P, R]:
    """``then``, which first adds what ``note`` makes of its arguments to ``seen``."""

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        seen.append(note(*args, **kwargs))
        return then(*args, **kwargs)

    return call
