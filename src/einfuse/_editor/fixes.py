"""The hints of faults as changes of the text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from einfuse._editor.names import offset
from einfuse.ir import SpecError


@dataclass(frozen=True, slots=True)
class Fix:
    """Replaces the characters ``start`` to ``stop`` of the text. ``title`` says so to a person."""

    title: str
    start: int
    stop: int
    text: str


_SIGNS = {"&": "and", "|": "or", "!": "not ", "~": "not "}
_Found = tuple[int, int, str]
"""Start, stop and what to write there."""


def fix(error: SpecError, text: str) -> Fix | None:
    """The change that the hint of a fault asks for; None where it leaves something to decide."""
    if error.loc is None or not error.hint:
        return None
    start = offset(text, error.loc.line, error.loc.column)
    stop = min(start + error.loc.length, len(text))
    for make in _FIXES:
        found = make(error, text, start, stop)
        if found is not None:
            return Fix(error.hint, *found)
    return None


def _nearest(error: SpecError, text: str, start: int, stop: int) -> _Found | None:
    """did you mean `x`?"""
    asked = re.match(r"did you mean `([\w.]+)`\?", error.hint)
    wrong = re.search(r"`([\w.]+)`", error.message)
    if asked is None or wrong is None:
        return None
    place = re.compile(rf"\b{re.escape(wrong[1])}\b").search(text, start, stop)
    return None if place is None else (place.start(), place.end(), asked[1])


def _equality(error: SpecError, text: str, start: int, stop: int) -> _Found | None:
    return (start, stop, "==") if error.hint.startswith("equality is written `==`") and text[start:stop] == "=" else None


def _power(error: SpecError, text: str, start: int, stop: int) -> _Found | None:
    twice = error.hint.startswith("a power is written") and text[start - 1 : stop] == "**"
    return (start - 1, stop, "^") if twice else None


def _foreign(error: SpecError, text: str, start: int, stop: int) -> _Found | None:
    """A sign of another language; two of it are one."""
    sign = text[start : start + 1]
    if not error.message.startswith("the character") or sign not in _SIGNS:
        return None
    return start, start + 1 + (text[start + 1 : start + 2] == sign), _SIGNS[sign]


def _ranks(error: SpecError, text: str, start: int, stop: int) -> _Found | None:
    """write s[i, d], or reduce over e"""
    asked = re.match(r"write (\w+)(\[[\w, ]+\])(?:,|$)", error.hint)
    if asked is None:
        return None
    line = text.rfind("\n", 0, start) + 1
    place = re.compile(rf"\b{asked[1]}\s*(?:\[[^\]\n]*\])?(?=\s*=[^=])").search(text, line)
    return None if place is None or place.start() > stop else (place.start(), place.end(), asked[1] + asked[2])


_FIXES: tuple[Callable[[SpecError, str, int, int], _Found | None], ...] = (_nearest, _equality, _power, _foreign, _ranks)
