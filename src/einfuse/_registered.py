"""Torch knows the operators of einfuse in every process that imports both, in either order: a graph that was captured elsewhere loads there.

The language needs no torch, so the operators are not imported with it. Where torch comes later they come right after it; or, where it was
a module of ours that imported torch, with the first import after that module.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


def with_torch(register: Callable[[], object]) -> None:
    """Calls ``register`` now where torch was imported, else as soon as it is and no module of ours is half imported."""
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, _Awaited(register))
    elif sys.modules["torch"] is not None:  # None: its import is forbidden
        register()


class _Awaited(MetaPathFinder):
    """Sees every import until it has registered; finds torch as the others do."""

    def __init__(self, register: Callable[[], object]) -> None:
        self.register, self.looking = register, False

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            if name.partition(".")[0] != "einfuse":  # one of ours may be what is registered: it would be loaded twice
                self.settle()
            return None
        if self.looking:
            return None
        self.looking = True
        try:
            found = find_spec(name)
        finally:
            self.looking = False
        if found is not None and found.loader is not None:
            found.loader = _Then(found.loader, self.settle)
        return found

    def settle(self) -> None:
        """Registers, if it can be done by now."""
        if self in sys.meta_path and sys.modules.get("torch") is not None and not _half_imported():
            sys.meta_path.remove(self)
            self.register()


def _half_imported() -> bool:
    """Whether torch, or any module of ours, is being imported."""
    ours = (m for n, m in list(sys.modules.items()) if n == "torch" or n.partition(".")[0] == "einfuse")
    return any(getattr(getattr(m, "__spec__", None), "_initializing", False) for m in ours)


class _Then(Loader):
    """Loads a module as its own loader does, which it is given back, then calls ``done``."""

    def __init__(self, own: Loader, done: Callable[[], object]) -> None:
        self.own, self.done = own, done

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.own
        assert module.__spec__ is not None, "a module that is loaded has a spec"
        module.__spec__.loader = self.own
        self.own.exec_module(module)
        module.__spec__._initializing = False  # type: ignore[attr-defined]  # it is whole; the import system says so a moment later
        self.done()
