"""Places in the user's functions, for messages."""

from __future__ import annotations

import dis
import itertools
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any

from einfuse.ir import Span

_NOT_THE_USERS = frozenset(("einfuse", "torch", "numpy"))
"""Packages whose functions stand between a trace and the function that is traced."""


def here() -> Span | None:
    """The place in the user's code that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_the_users(frame):
        frame = frame.f_back
    return None if frame is None else _span(frame, frame.f_lasti, frame.f_lineno)


def raised_at(error: BaseException) -> Span | None:
    """The last place in the user's code that an error came through."""
    found: Span | None = None
    at: TracebackType | None = error.__traceback__
    while at is not None:
        if _is_the_users(at.tb_frame):
            found = _span(at.tb_frame, at.tb_lasti, at.tb_lineno)
        at = at.tb_next
    return found


def defined(fn: Callable[..., Any]) -> Span | None:
    """Where a function begins."""
    code = getattr(fn, "__code__", None)
    return Span(code.co_filename, code.co_firstlineno, 1) if code is not None else None


def uses(code: CodeType, *operations: str) -> Iterator[tuple[str, Span]]:
    """The variables of these operations of Python's machine in code, and in the functions made in it, and where."""
    for step in dis.get_instructions(code):
        if step.opname in operations and step.positions is not None:
            yield str(step.argval), _placed(code.co_filename, code.co_firstlineno, step.positions)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from uses(inner, *operations)


def name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", "") or type(fn).__name__


def _is_the_users(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] not in _NOT_THE_USERS


def _span(frame: FrameType, instruction: int, number: int) -> Span:
    at = next(itertools.islice(frame.f_code.co_positions(), instruction // 2, None), None)
    return _placed(frame.f_code.co_filename, number, at or (None, None, None, None))


def _placed(file: str, number: int, at: tuple[int | None, int | None, int | None, int | None]) -> Span:
    """By lines and columns as Python tells them, of which it may know none but the line's ``number``."""
    line, last, column, end = at
    if line is None or column is None:
        return Span(file, number, 1)
    length = end - column if end is not None and last == line else 1
    return Span(file, line, column + 1, max(1, length))
