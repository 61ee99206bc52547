"""What all benchmarks share: options, calls in turns, tables, results. It puts src on the path: einfuse need not be installed."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "src"))

Call = Callable[[], object]
Row = Mapping[str, Call]
"""What is called in one run, by name."""
Name = TypeVar("Name")


class Spread(NamedTuple):
    """The median of some figures, and between which two the middle half of them lies."""

    median: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


def spread(figures: Sequence[float]) -> Spread:
    """Of one figure or more."""
    low, _, high = statistics.quantiles(figures, n=4) if len(figures) > 1 else [figures[0]] * 3
    return Spread(statistics.median(figures), low, high)


# -- options ---------------------------------------------------------------------------------------------------------------------


def options(
    doc: str | None,
    *,
    repeats: int | None = None,
    threads: int | None = None,
    only: Iterable[str] = (),
    json: bool = False,
    **numbers: int,
) -> argparse.ArgumentParser:
    """A parser that describes a script by its docstring: with the shared options that are named here, and one for each of ``numbers``."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in {"repeats": repeats, "threads": threads, **numbers}.items():
        if usual is not None:
            made.add_argument(f"--{name}", type=int, default=usual, metavar="N", help="%(default)s unless given")
    if only := list(only):
        made.add_argument(
            "--only", nargs="+", choices=only, default=only, metavar="NAME", help=f"of {', '.join(only)}; all unless given"
        )
    if json:
        made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return made


def parsed(made: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; torch has as many threads from then on, and random numbers that are the same in every run."""
    import torch

    args = made.parse_args(argv)
    if isinstance(threads := getattr(args, "threads", 1), int):
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    return args


# -- times -----------------------------------------------------------------------------------------------------------------------


def clocked(run: Call, clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of a call; of the processor unless another clock is given."""
    begin = clock()
    run()
    return clock() - begin


def turns(
    row: Mapping[Name, Call],
    repeats: int,
    skipped: int = 1,
    measure: Callable[[Call], float] = clocked,
    before: Callable[[Name], object] = lambda _: None,
    slow: float = math.inf,
) -> dict[Name, list[float]]:
    """The figures of every call, in turns of which the first few do not count; ``before`` each runs what is not measured.

    A call that took more than ``slow`` when it did not count is not repeated: that figure stands for all.
    """
    found: dict[Name, list[float]] = {n: [] for n in row}
    for turn in range(skipped + repeats):
        for name, run in row.items():
            if len(found[name]) == repeats:
                continue
            before(name)
            figure = measure(run)
            if turn >= skipped:
                found[name].append(figure)
            elif figure > slow and turn == skipped - 1:
                found[name] = [figure] * repeats
    return found


def medians(row: Mapping[Name, Call], repeats: int, skipped: int = 1, unit: float = 1e-3) -> dict[Name, float]:
    """The median processor time of every call in turns: milliseconds, unless the unit is another part of a second."""
    return {n: statistics.median(t) / unit for n, t in turns(row, repeats, skipped).items()}


@contextlib.contextmanager
def no_kernels() -> Iterator[None]:
    """Kernels return at once, so that what is left is the host's."""
    with mock.patch.object(importlib.import_module("einfuse.codegen.cpu.build"), "call", _nothing):
        yield


def _nothing(*_: object) -> int:
    """Not a mock: a call of one takes as long as a launch."""
    return 0


# -- results ---------------------------------------------------------------------------------------------------------------------


class Table:
    """Rows that are printed as they come, and kept. A column is its head and its format, which says how wide it is: ``"ms:9.2f"``."""

    def __init__(self, *columns: str) -> None:
        from rich.console import Console

        self.rows: list[dict[str, object]] = []
        self._columns = [(head, form) for head, _, form in (c.partition(":") for c in columns)]
        self._console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
        self._print([head for head, _ in self._columns], "bold")

    def row(self, *cells: object) -> None:
        """A cell for each column; None leaves it empty, and a text stands as it is."""
        self.rows.append(dict(zip((head for head, _ in self._columns), cells, strict=True)))
        form = [f for _, f in self._columns]
        self._print([c if isinstance(c, str) else "" if c is None else format(c, f) for c, f in zip(cells, form, strict=True)])

    def _print(self, cells: Iterable[str], style: str = "") -> None:
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid.grid(padding=(0, 2, 0, 0))
        for head, form in self._columns:
            width = int("".join(c for c in form.split(".")[0] if c.isdigit()) or 0)
            grid.add_column(justify="right" if form[-1:] in tuple("defg%") else "left", min_width=max(width, len(head)))
        grid.add_row(*(Text(c, style) for c in cells))
        self._console.print(grid)


def write(path: Path | None, result: Mapping[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all, behind what it depends on (`machine`); nothing without a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(finite({**machine(), **result}), indent=1) + "\n")
    unfinished.replace(path)


def machine() -> dict[str, Any]:
    """What figures depend on: the processor, threads, versions; and when they were taken."""
    import torch

    import einfuse

    versions = {"torch": torch.__version__, "einfuse": einfuse.__version__}
    when = datetime.now(UTC).isoformat(timespec="seconds")
    return {"processor": processor(), "threads": torch.get_num_threads(), **versions, "when": when}


def processor() -> str:
    """The processor's name; its architecture where it gives none."""
    from einfuse.codegen.cpu.build import processor as described

    lines = described().splitlines()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), lines[0])


def finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null."""
    match value:
        case dict():
            return {k: finite(v) for k, v in value.items()}
        case list() | tuple():
            return [finite(v) for v in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
