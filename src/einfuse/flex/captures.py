"""The captures of a function, found without running it: numbers are replaced by ones that know their place.

    def windowed(width):
        def mask(b, h, q_idx, kv_idx): return q_idx - kv_idx <= width
        return mask

The mask of ``windowed(256)`` is traced with a ``width`` that is an `Int`: an int in every respect, which becomes a run-time argument
where it meets a symbolic value. Arithmetic with such numbers gives such numbers again, with a tag that says how they were made. What
needs a plain number (``range``, ``if``) gets one, and the trace is then the trace for this value. Functions inside closures, tuples,
lists and partials are followed. Numbers in globals and in attributes of objects stay as they are: they become part of the kernel.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CellType, FunctionType, MethodType
from typing import Any

import torch

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


def tagged(value: object, tag: Tag) -> object:
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
        return tagged(compute(_plain(a), _plain(b)), (name, _tag(a), _tag(b)))

    return run


def _unary(name: str) -> Callable[..., object]:
    compute = getattr(operator, name)

    def run(self: Int | Float) -> object:
        return tagged(compute(_plain(self)), (name, self.tag))

    return run


for _kind in (Int, Float):
    for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
        setattr(_kind, f"__{_name}__", _operator(_name, False))
        setattr(_kind, f"__r{_name}__", _operator(_name, True))
    for _name in ("neg", "pos", "abs"):
        setattr(_kind, f"__{_name}__", _unary(_name))


@dataclass(slots=True)
class Captures:
    """What was found in the closures of the functions of one call."""

    names: dict[int, str] = field(default_factory=dict)
    cells: dict[int, tuple[CellType, CellType, str, object]] = field(default_factory=dict)  # by id: old, new, variable, content
    functions: dict[int, tuple[FunctionType, FunctionType]] = field(default_factory=dict)
    lists: list[tuple[str, list[object], list[object]]] = field(default_factory=list)  # variable, list, what it held

    def lifted(self, x: Any, name: str = "", path: Tag = ()) -> Any:
        """``x`` with the numbers inside it replaced; the very same object where there are none."""
        if isinstance(x, torch.Tensor):
            self.names.setdefault(id(x), name)
        if type(x) is FunctionType:
            return self._function(x)
        if type(x) is functools.partial:
            func = self.lifted(x.func)
            args = tuple(self.lifted(a, "argument", (*path, n)) for n, a in enumerate(x.args))
            keywords = {k: self.lifted(a, k, (*path, k)) for k, a in x.keywords.items()}
            return functools.partial(func, *args, **keywords)
        if type(x) is MethodType:
            return MethodType(self.lifted(x.__func__), x.__self__)
        if type(x) in (tuple, list):
            parts = [self.lifted(a, name, (*path, n)) for n, a in enumerate(x)]
            made = x if all(a is b for a, b in zip(x, parts, strict=True)) else type(x)(parts)
            if isinstance(made, list):
                self.lists.append((name, made, parts))
            return made
        return tagged(x, (name, *path))

    def _function(self, fn: FunctionType) -> FunctionType:
        if id(fn) in self.functions:
            return self.functions[id(fn)][1]
        for name in fn.__code__.co_names:
            if isinstance(value := fn.__globals__.get(name), torch.Tensor):
                self.names.setdefault(id(value), name)
        self.functions[id(fn)] = (fn, fn)  # a function that captures itself keeps the original inside
        place = (fn.__qualname__, fn.__code__.co_firstlineno)
        cells = fn.__closure__ or ()
        new = tuple(self._cell(c, n, (*place, n)) for c, n in zip(cells, fn.__code__.co_freevars, strict=True))
        defaults = self.lifted(fn.__defaults__, "default", place) if fn.__defaults__ else fn.__defaults__
        if all(a is b for a, b in zip(cells, new, strict=True)) and defaults is fn.__defaults__:
            return fn
        made = FunctionType(fn.__code__, fn.__globals__, fn.__name__, defaults, new or None)
        made.__kwdefaults__, made.__qualname__ = fn.__kwdefaults__, fn.__qualname__
        made.__dict__.update(fn.__dict__)
        self.functions[id(fn)] = (fn, made)
        return made

    def _cell(self, cell: CellType, name: str, path: Tag) -> CellType:
        if id(cell) in self.cells:
            return self.cells[id(cell)][1]
        try:
            content = cell.cell_contents
        except ValueError:  # a variable without a value yet
            return cell
        value = self.lifted(content, name, path)
        new = cell if value is content else CellType(value)
        self.cells[id(cell)] = (cell, new, name, value)
        return new

    def assigned(self) -> str | None:
        """A captured variable that was given another value, or a list other parts, while the functions ran; None: there is none."""
        cells = (name for _, new, name, value in self.cells.values() if new.cell_contents is not value)
        lists = (name for name, x, parts in self.lists if len(x) != len(parts) or any(map(operator.is_not, x, parts)))
        return next(itertools.chain(cells, lists), None)
