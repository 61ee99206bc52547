"""Captured Python numbers that know where they came from, so that a kernel takes them at run time instead of holding them.

An `Int` is an int and a `Float` a float in every respect. Arithmetic with them gives such numbers again, with a tag that says how
they were made; where one meets a symbolic value it becomes a run-time argument. What needs a plain number (``range``, ``if``)
gets one, and the trace is then the trace for this value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

Tag = tuple[object, ...]
"""Where a number was found, or how it was made from others: equal tags are the same number in every call."""


class Int(int):
    """An int with a tag."""

    tag: Tag

    def __new__(cls, value: int, tag: Tag) -> Int:
        made = super().__new__(cls, value)
        made.tag = tag
        return made


class Float(float):
    """A finite float with a tag."""

    tag: Tag

    def __new__(cls, value: float, tag: Tag) -> Float:
        made = super().__new__(cls, value)
        made.tag = tag
        return made


def number(value: object, tag: Tag) -> object:
    """``value`` with a tag, where it is a number that can be passed to a kernel; anything else as it is."""
    if type(value) is int:
        return Int(value, tag)
    if type(value) is float and math.isfinite(value):
        return Float(value, tag)
    return value


def _plain(x: object) -> Any:
    return int(x) if type(x) is Int else float(x) if type(x) is Float else x


def _tag(x: object) -> object:
    return x.tag if isinstance(x, Int | Float) else x


def _operator(name: str, reflected: bool) -> Callable[..., object]:
    compute = getattr(operator, name)

    def run(self: Int | Float, other: object) -> object:
        if not isinstance(other, int | float):
            return NotImplemented
        a, b = (other, self) if reflected else (self, other)
        return number(compute(_plain(a), _plain(b)), (name, _tag(a), _tag(b)))

    return run


def _unary(name: str) -> Callable[..., object]:
    compute = getattr(operator, name)

    def run(self: Int | Float) -> object:
        return number(compute(_plain(self)), (name, self.tag))

    return run


for _kind in (Int, Float):
    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
        setattr(_kind, f"__{_name}__", _operator(_name, False))
        setattr(_kind, f"__r{_name}__", _operator(_name, True))
    for _name in ("neg", "pos", "abs"):
        setattr(_kind, f"__{_name}__", _unary(_name))
