"""Statements in dependence order."""

from __future__ import annotations

import contextlib
import graphlib
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from typing import Protocol, TypeVar


class _Named(Protocol):
    @property
    def target(self) -> str: ...


S = TypeVar("S", bound=_Named)


class CycleError(Exception):
    """Statements that need each other, by name."""


def by_level(statements: Iterable[S], reads: Callable[[S], Iterable[str]]) -> list[S]:
    """The statements, each after those that it reads: all that need none, then all that need only these, and so on, in the order given.

    A statement that reads itself (an equation) does not wait for itself. Raises CycleError.
    """
    listed = list(statements)
    place = {x.target: n for n, x in enumerate(listed)}
    sorter = TopologicalSorter({n: {place[name] for name in reads(x) if name in place} - {n} for n, x in enumerate(listed)})
    with contextlib.suppress(graphlib.CycleError):  # what does not wait for a cycle has a place
        sorter.prepare()
    order: list[int] = []
    while level := sorted(sorter.get_ready()):
        order += level
        sorter.done(*level)
    if len(order) < len(listed):
        raise CycleError(", ".join(x.target for n, x in enumerate(listed) if n not in order))
    return [listed[n] for n in order]
