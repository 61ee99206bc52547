"""Plain records as text: how what the compiler derived is kept on disk and handed to other processes.

A text is a JSON list of atoms (numbers, strings, true, false, null) and composites ``[kind, place, ...]``, whose parts are the elements at
these earlier places; the last element is the whole. Equal immutable parts stand there once. A kind is a builtin container or the name
of a dataclass in one of `MODULES`: reading a text can make nothing else, and runs no code but that of their constructors.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
from typing import Any

MODULES = (
    "codegen.plan.nodes",
    "codegen.plan.scan",
    "codegen.scan.ladder",
    "codegen.scan.team",
    "ir.derivation",
    "ir.nodes",
    "ir.passes.backward",
    "ir.passes.chunk_backward",
    "ir.passes.split",
    "ir.scalars",
    "ir.span",
    "runtime.specialise",
    "runtime.tiles",
)
"""Where the dataclasses are defined, in ``einfuse``."""

ATOMS = frozenset({type(None), bool, int, float, str})
CONTAINERS: dict[str, type] = {x.__name__: x for x in (tuple, list, frozenset, dict)}


class RecordError(ValueError):
    """A text that is no record."""


def dumps(value: object) -> bytes:
    """The text of a value made of atoms, containers and the dataclasses of `MODULES`."""
    writer = _Writer()
    writer.place(value)
    return json.dumps(writer.table, separators=(",", ":")).encode()


def loads(text: bytes) -> Any:
    """The value of a text. Raises RecordError where it is none."""
    made: list[Any] = []
    try:
        for element in json.loads(text):
            if type(element) is list:
                kind, *places = element
                made.append(_maker(kind)([made[n] for n in places]))
            elif type(element) in ATOMS:
                made.append(element)
            else:
                raise RecordError(f"an element is a {type(element).__name__}")
        return made[-1]
    except RecordError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AssertionError, RecursionError) as error:
        raise RecordError(f"{type(error).__name__}: {error}") from error


class _Writer:
    def __init__(self) -> None:
        self.table: list[object] = []
        self.places: dict[object, int] = {}
        self.objects: dict[int, tuple[int, object]] = {}  # with the object, which keeps its id

    def place(self, x: Any) -> int:
        """Where a value stands in the table, into which it is put first if it is new."""
        kind: type = type(x)
        if kind in ATOMS:
            return self._at((kind, repr(x) if kind is float else x), x)
        known = self.objects.get(id(x))
        if known is not None:
            return known[0]
        if kind is dict:
            parts: list[Any] = [y for item in x.items() for y in item]
        elif kind is frozenset:
            parts = sorted(x, key=repr)
        elif kind in (tuple, list):
            parts = list(x)
        else:
            parts = [getattr(x, name) for name in _fields(kind)]
        element: list[object] = [_kind(kind)]
        for part in parts:
            element.append(self.place(part))
        shared = kind in (tuple, frozenset) or (kind not in (dict, list) and _frozen(kind))
        place = self._at(tuple(element) if shared else None, element)
        self.objects[id(x)] = place, x
        return place

    def _at(self, key: object, element: object) -> int:
        place = self.places.get(key)
        if place is None:
            place = len(self.table)
            self.table.append(element)
            if key is not None:
                self.places[key] = place
        return place


@functools.cache
def _kind(cls: type) -> str:
    """The name of a container or dataclass in a text."""
    if cls in CONTAINERS.values():
        return cls.__name__
    module = cls.__module__.removeprefix("einfuse.")
    assert module in MODULES, f"{cls.__module__}.{cls.__qualname__} is no plain record"
    assert dataclasses.is_dataclass(cls), f"{cls.__qualname__} is no plain record"
    return f"{module}:{cls.__qualname__}"


@functools.cache
def _frozen(cls: type) -> bool:
    """Whether equal ones can stand for each other."""
    return bool(cls.__dataclass_params__.frozen)  # type: ignore[attr-defined]  # of every dataclass


@functools.cache
def _fields(cls: type) -> tuple[str, ...]:
    """What the constructor of a dataclass takes."""
    _kind(cls)
    return tuple(f.name for f in dataclasses.fields(cls) if f.init)


@functools.cache
def _maker(kind: str) -> Any:
    """What makes a composite of a list of its parts."""
    if kind == "dict":
        return lambda parts: dict(zip(parts[::2], parts[1::2], strict=True))
    if kind in CONTAINERS:
        return CONTAINERS[kind]
    module, _, name = kind.partition(":")
    if module not in MODULES:
        raise RecordError(f"{kind!r} is no record")
    found = getattr(importlib.import_module(f"einfuse.{module}"), name, None)
    if not isinstance(found, type) or not dataclasses.is_dataclass(found) or found.__module__ != f"einfuse.{module}":
        raise RecordError(f"{kind!r} is no record")
    return lambda parts: found(*parts)
