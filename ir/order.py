"""Statements in dependence order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    needs = [{place[name] for name in reads(x) if name in place} - {n} for n, x in enumerate(listed)]
    readers: list[list[int]] = [[] for _ in listed]
    for n, before in enumerate(needs):
        for m in before:
            readers[m].append(n)
    left = [len(before) for before in needs]
    level = [n for n, count in enumerate(left) if count == 0]
    out: list[S] = []
    while level:
        out += [listed[n] for n in level]
        freed = []
        for m in level:
            for n in readers[m]:
                left[n] -= 1
                if left[n] == 0:
                    freed.append(n)
        level = sorted(freed)
    if len(out) < len(listed):
        raise CycleError(", ".join(x.target for n, x in enumerate(listed) if left[n]))
    return out
