"""Places in source texts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a source text: file name, 1-based line and column, and the length of the marked text."""

    file: str
    line: int
    column: int
    length: int = 1
