"""The one family of errors that a spec can cause, and how they are shown."""

from __future__ import annotations

from einfuse.ir.span import Span


class EinfuseError(Exception):
    """Base of every error einfuse raises on purpose."""


class DoesNotFitError(EinfuseError):
    """A kernel that asks a device for more than it has; nothing was written."""


class SpecError(EinfuseError):
    """A fault in a spec: where it is, what was expected, what was found, and what to do next.

    ``str(error)`` is ``file:line:column: message``, the source line with a caret, and the hint.
    """

    def __init__(self, message: str, loc: Span | None = None, hint: str = "", source: str | None = None) -> None:
        self.message, self.loc, self.hint, self.source = message, loc, hint, source
        super().__init__(message)

    @property
    def line(self) -> int:
        """1-based line, 0 where the fault has no place in a text."""
        return self.loc.line if self.loc else 0

    @property
    def column(self) -> int:
        """1-based column, 0 where the fault has no place in a text."""
        return self.loc.column if self.loc else 0

    def within(self, source: str, file: str | None = None) -> SpecError:
        """The same error, able to show the offending line of ``source``; unchanged where its place is not in ``file``."""
        if self.source is None and (file is None or (self.loc is not None and self.loc.file == file)):
            self.source = source
        return self

    def __str__(self) -> str:
        out = [f"{self.loc.file}:{self.line}:{self.column}: {self.message}" if self.loc else self.message]
        lines = (self.source or "").splitlines()
        if self.loc and 0 < self.line <= len(lines):
            text, column = _excerpt(lines[self.line - 1], self.column)
            width = max(1, min(self.loc.length, len(text) - column + 1))
            out += [f"    {text}", "    " + " " * (column - 1) + "^" * width]
        if self.hint:
            out.append(f"  hint: {self.hint}")
        return "\n".join(out)


class TooLargeError(SpecError):
    """An expression that grew, while definitions were written into it, beyond what any pass should have to look through."""

    def __init__(self, loc: Span | None = None) -> None:
        super().__init__(
            "this grows too large once what it reads is written into it",
            loc,
            "read each value once or twice, repeat fewer steps, or make a part of it a reduction",
        )


def _excerpt(line: str, column: int, width: int = 160) -> tuple[str, int]:
    """The part of a (possibly enormous) line around a column, and the column inside it."""
    start = max(0, column - width // 2) if len(line) > width else 0
    return line[start : start + width].replace("\t", " "), column - start
