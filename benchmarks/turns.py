"""Calls in turns, and calls without their kernels: what the benchmarks of calls measure by."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from unittest import mock

Row = Mapping[str, Callable[[], object]]
"""What is called in one run, by name."""


def medians(row: Row, repeats: int, skipped: int = 5) -> dict[str, float]:
    """The median processor time of every call, in microseconds; in turns, of which the first few do not count."""
    times: dict[str, list[float]] = {n: [] for n in row}
    for turn in range(repeats + skipped):
        for name, run in row.items():
            begin = time.process_time()
            run()
            if turn >= skipped:
                times[name].append(time.process_time() - begin)
    return {n: median(t) * 1e6 for n, t in times.items()}


@contextlib.contextmanager
def no_kernels() -> Iterator[None]:
    """Kernels return at once, so that what is left is the host's."""
    with mock.patch.object(sys.modules["einfuse.codegen.cpu.build"], "call", _nothing):
        yield


def _nothing(*_: object) -> int:
    """Not a mock: a call of one takes as long as a launch."""
    return 0
