"""Where output goes: results to stdout, everything else (progress, faults) to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from einfuse._cli.plain import Json as Json
from einfuse._cli.plain import report as report
from einfuse.ir import SpecError


def out() -> Console:
    """Made at every use: tests and pipes replace ``sys.stdout``. Without markup: brackets in our texts are ranks."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)


def err() -> Console:
    return Console(file=sys.stderr, highlight=False, markup=False)


def say(text: str) -> None:
    """One line for a person, on stderr."""
    err().print(text, soft_wrap=True)


def fault(error: SpecError, kind: str = "error") -> None:
    """A SpecError as it shows itself: place, line, caret, hint. Colour where there is a terminal."""
    first, *rest = str(error).split("\n")
    console = err()
    console.print(Text.assemble((f"{kind} ", "bold red" if kind == "error" else "bold yellow"), first), soft_wrap=True)
    for line in rest:
        style = "green" if line.lstrip().startswith("hint:") else "red" if set(line.strip()) == {"^"} else ""
        console.print(Text(line, style), soft_wrap=True)


def code(text: str, language: str) -> None:
    """A program text: coloured on a terminal, byte for byte elsewhere."""
    if sys.stdout.isatty():
        out().print(Syntax(text, language, theme="ansi_dark", background_color="default", word_wrap=True))
    else:
        print(text)


def verdict(ok: bool, bad: str = "WRONG") -> Text:
    """The last cell of a checked row."""
    return Text("ok", "green") if ok else Text(bad, "bold red")


def table(*columns: str, title: str = "") -> Table:
    """A plain table; a column whose name begins with ``>`` is aligned to the right."""
    made = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    return made


@contextmanager
def working(total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A progress bar on stderr where that is a terminal, gone when the work is done; yields what to call before each step, with its name."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=total)
        done = -1

        def step(name: str) -> None:
            nonlocal done
            done += 1
            bar.update(task, description=name, completed=done if total is not None else 0)

        yield step
