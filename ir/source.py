"""The text of a spec, read from its file."""

from __future__ import annotations

from pathlib import Path

from einfuse.ir.errors import SpecError
from einfuse.ir.span import Span

MAX_TEXT = 1_000_000


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
