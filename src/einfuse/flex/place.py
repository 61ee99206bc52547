"""Places in the user's functions, for messages."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from einfuse.ir import Span, SpecError

_OURS = tuple(f"{Path(file).parent}/" for file in (Path(__file__).parent, torch.__file__))


def check_signature(fn: Callable[..., Any], expected: int) -> None:
    """Raises SpecError where a function does not take the arguments of a score (or mask) function."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(inspect.signature(fn).parameters.values())
    most = sum(p.kind in kinds for p in parameters)
    least = sum(p.kind in kinds and p.default is p.empty for p in parameters)
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) or least == expected or (least < expected <= most and least != 4):
        return
    words = {4: "a mask function takes (b, h, q_idx, kv_idx)", 5: "a score function takes (score, b, h, q_idx, kv_idx)"}
    other = {4: "; this looks like a score function", 5: "; this looks like a mask function: give it to create_block_mask"}
    found = f"`{name(fn)}` takes {least} arguments"
    raise SpecError(f"{words[expected]}, {found}{other[expected] if least in (4, 5) else ''}", place(fn))


def place(fn: Callable[..., Any]) -> Span | None:
    code = getattr(fn, "__code__", None)
    return Span(code.co_filename, code.co_firstlineno, 1) if code is not None else None


def name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", "") or type(fn).__name__


def here() -> Span | None:
    """The place in the user's code that is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    if frame is None:
        return None
    return _span(frame, frame.f_lasti, frame.f_lineno)


def raised_at(error: BaseException) -> Span | None:
    """The last place in the user's code that an error came through."""
    found: Span | None = None
    at: TracebackType | None = error.__traceback__
    while at is not None:
        if not at.tb_frame.f_code.co_filename.startswith(_OURS):
            found = _span(at.tb_frame, at.tb_lasti, at.tb_lineno)
        at = at.tb_next
    return found


def _span(frame: FrameType, instruction: int, number: int) -> Span:
    at = next(itertools.islice(frame.f_code.co_positions(), instruction // 2, None), None)
    line, last, column, end = at or (None, None, None, None)
    if line is None or column is None:
        return Span(frame.f_code.co_filename, number, 1)
    length = end - column if end is not None and last == line else 1
    return Span(frame.f_code.co_filename, line, column + 1, max(1, length))
