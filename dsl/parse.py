"""Text to syntax tree. Every fault of syntax is a `SpecError` with its place and what was expected."""

from __future__ import annotations

from pathlib import Path

from einfuse.dsl import ast
from einfuse.ir import Span, SpecError

MAX_TEXT = 1_000_000


def parse(text: str, file: str = "<text>") -> ast.Module:
    """The syntax tree of ``text``. Raises SpecError where it is not ``.attn``; names are not looked up yet."""
    from einfuse.dsl.syntax import parsed  # with the grammar's library, which takes longer to import than all the rest

    try:
        return parsed(text, file)
    except SpecError as error:
        raise error.within(text) from None


def read_spec(path: str | Path) -> str:
    """The text of a file. Raises SpecError where it is not UTF-8 or too large."""
    data = Path(path).read_bytes()
    if len(data) > MAX_TEXT:
        raise SpecError(f"{path} holds {len(data):,} bytes; a spec holds at most {MAX_TEXT:,}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        where = Span(str(path), line, column)
        raise SpecError(f"byte {error.start} is not UTF-8 text", where, "save the file as UTF-8") from None
