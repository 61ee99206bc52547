"""A traced function is called once for all points, so what it computes has to follow from its arguments and captures alone."""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from einfuse.ir import Span, SpecError

T = TypeVar("T")
HINT = (
    "random numbers, times and counters are drawn at the call of the function, once for all points: draw a tensor outside of it "
    "and read it at the coordinates"
)


def generators() -> tuple[object, ...]:
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


def traced(name: str, place: Span | None, trace: Callable[[], T]) -> T:
    """What ``trace`` gives, which it is asked twice. Raises SpecError where that differs, or where random numbers were drawn."""
    before = generators()
    first, second = trace(), trace()
    if first != second:
        raise SpecError(f"`{name}` computes something else each time it is called", place, HINT)
    if generators() != before:
        raise SpecError(f"`{name}` draws random numbers", place, HINT)
    return second
