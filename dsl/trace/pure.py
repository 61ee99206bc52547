"""A traced function is called once for all points, so what it computes has to follow from its arguments and captures alone."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import CellType, FunctionType
from typing import Any, NoReturn, TypeVar

from einfuse.dsl.trace.place import defined, name, uses
from einfuse.ir import SpecError

T = TypeVar("T")
HINT = (
    "random numbers, times and counters are drawn at the call of the function, once for all points: draw a tensor outside of it "
    "and read it at the coordinates"
)


def twice(fn: Callable[..., Any], trace: Callable[[], T]) -> T:
    """What ``trace`` gives, which runs ``fn`` and is asked twice.

    Raises SpecError where that differs, where random numbers were drawn, or where ``fn`` changed what is not its own.
    """
    variables, drawn = _Variables(fn), _generators()
    try:
        first = trace()
        if variables.settled():
            first = trace()
        second = trace()
    finally:
        assigned = variables.restored()
    if assigned:
        refuse_assignment(fn, assigned)
    for variable in variables.written():
        _refuse_change(fn, "works in place on the captured tensor", variable, "LOAD")
    if first != second:
        raise SpecError(f"`{name(fn)}` computes something else each time it is called", defined(fn), HINT)
    if _generators() != drawn:
        raise SpecError(f"`{name(fn)}` draws random numbers", defined(fn), HINT)
    return second


def refuse_assignment(fn: Callable[..., Any], variable: str) -> NoReturn:
    """Raises SpecError for a function that assigns to a variable which is not its own."""
    _refuse_change(fn, "assigns to the captured variable", variable, "STORE")


def _refuse_change(fn: Callable[..., Any], what: str, variable: str, operation: str) -> NoReturn:
    code = getattr(fn, "__code__", None)
    found = () if code is None else uses(code, f"{operation}_DEREF", f"{operation}_GLOBAL")
    where = next((at for n, at in found if n == variable), defined(fn))
    hint = "it is called once for all points, in no order: compute what it needs outside of it"
    raise SpecError(f"`{name(fn)}` {what} `{variable}`", where, hint)


class _Variables:
    """What a function could change, though it is not its own: variables, by what they hold, and tensors, by how often they were written."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.globals: dict[str, Any] = {}
        self.cells: dict[str, CellType] = {}
        self.held: dict[str, object] = {}
        self.before: Mapping[str, object] = {}
        self.versions: dict[str, int | None] = {}
        if isinstance(fn, FunctionType):
            self.globals = fn.__globals__
            self.cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
            self.held = {n: self._now(n) for n in (*self.cells, *(n for n, _ in uses(fn.__code__, "STORE_GLOBAL")))}
            self.before = self.held.copy()
            self.versions = {n: _version(self._now(n)) for n in (*self.cells, *fn.__code__.co_names)}

    def _now(self, variable: str) -> object:
        try:
            return self.cells[variable].cell_contents if variable in self.cells else self.globals[variable]
        except (KeyError, ValueError):  # it has no value yet
            return _NOTHING

    def settled(self) -> bool:
        """Whether a first run left something else in globals, which is theirs from then on: a table that is made once and kept there."""
        kept = {n: self._now(n) for n in self.held if n not in self.cells and self._now(n) is not self.held[n]}
        self.held |= kept
        self.versions |= {n: _version(x) for n, x in kept.items()}
        return bool(kept)

    def written(self) -> list[str]:
        """The tensors that were written."""
        return [n for n, version in self.versions.items() if _version(self._now(n)) != version]

    def restored(self) -> str | None:
        """Puts back what variables held; the name of one that held something else."""
        changed = [n for n, value in self.held.items() if self._now(n) is not value]
        for variable in changed:
            value = self.before[variable]
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


def _version(x: object) -> int | None:
    """How often a tensor of torch was written; None for anything else, and for one that counts no writes."""
    if not hasattr(type(x), "_version"):  # a module may do anything when it is asked
        return None
    try:
        return x._version  # type: ignore[attr-defined, no-any-return]  # of its type
    except RuntimeError:
        return None


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
