"""A traced function is called once for all points, so what it computes has to follow from its arguments and captures alone."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import CellType, FunctionType
from typing import Any, NoReturn, TypeVar

from einfuse.dsl.trace.place import defined, name, stored
from einfuse.ir import SpecError

T = TypeVar("T")
HINT = (
    "random numbers, times and counters are drawn at the call of the function, once for all points: draw a tensor outside of it "
    "and read it at the coordinates"
)


def twice(fn: Callable[..., Any], trace: Callable[[], T]) -> T:
    """What ``trace`` gives, which runs ``fn`` and is asked twice.

    Raises SpecError where that differs, where random numbers were drawn, or where variables outside of the function were assigned to.
    """
    variables, drawn = _Variables(fn), _generators()
    try:
        first, second = trace(), trace()
    finally:
        assigned = variables.restored()
    if assigned:
        refuse_assignment(fn, assigned)
    if first != second:
        raise SpecError(f"`{name(fn)}` computes something else each time it is called", defined(fn), HINT)
    if _generators() != drawn:
        raise SpecError(f"`{name(fn)}` draws random numbers", defined(fn), HINT)
    return second


def refuse_assignment(fn: Callable[..., Any], variable: str) -> NoReturn:
    """Raises SpecError for a function that assigns to a variable which is not its own."""
    code = getattr(fn, "__code__", None)
    found = () if code is None else (*stored(code, "STORE_DEREF"), *stored(code, "STORE_GLOBAL"))
    where = next((at for n, at in found if n == variable), defined(fn))
    message = f"`{name(fn)}` assigns to the captured variable `{variable}`"
    raise SpecError(message, where, "it is called once for all points, in no order: compute what it needs outside of it")


class _Variables:
    """What the variables hold that a function could assign to, though they are not its own."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.globals: dict[str, Any] = {}
        self.cells: dict[str, CellType] = {}
        self.held: dict[str, object] = {}
        if isinstance(fn, FunctionType):
            self.globals = fn.__globals__
            self.cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
            self.held = {n: self._now(n) for n in (*self.cells, *(n for n, _ in stored(fn.__code__, "STORE_GLOBAL")))}

    def _now(self, variable: str) -> object:
        try:
            return self.cells[variable].cell_contents if variable in self.cells else self.globals[variable]
        except (KeyError, ValueError):  # it has no value yet
            return _NOTHING

    def restored(self) -> str | None:
        """Puts back what was there before; the name of a variable that held something else."""
        changed = [n for n, value in self.held.items() if self._now(n) is not value]
        for variable in changed:
            value = self.held[variable]
            if variable in self.cells and value is not _NOTHING:
                self.cells[variable].cell_contents = value
            elif variable in self.cells:
                del self.cells[variable].cell_contents
            elif value is not _NOTHING:
                self.globals[variable] = value
            else:
                del self.globals[variable]
        return changed[0] if changed else None


_NOTHING = object()


def _generators() -> tuple[object, ...]:
    """The states of the random number generators of Python, numpy and torch, as far as they are loaded."""
    numpy, torch = sys.modules.get("numpy.random"), sys.modules.get("torch")
    return (
        random.getstate(),
        numpy and pickle.dumps(numpy.get_state(legacy=False)),
        torch and _elsewhere(lambda: bytes(torch.get_rng_state().numpy())),
    )


def _elsewhere(look: Callable[[], T]) -> T:
    """On a thread of its own: torch's modes and transforms, which would make the state a symbol, belong to the caller's."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(look).result()
