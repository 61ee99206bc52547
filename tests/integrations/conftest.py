"""timm for the tests of this folder."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import pytest


class Anything(type):
    """The type of classes that have every constant one asks them for: its name."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandIn(ModuleType):
    """A module of torchvision that is asked for names at import and for nothing after."""

    __path__ = ()  # type: ignore[assignment]  # no place, and not to be written to

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything(name, (), {})


class Finder:
    """Finds `torchvision` and whatever is below it."""

    def find_spec(self, name: str, *_: Any) -> Any:
        return importlib.util.spec_from_loader(name, self) if name.split(".")[0] == "torchvision" else None  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass  # a stand-in has no code


@pytest.fixture(scope="session")
def timm() -> Any:
    """timm, also beside a torch whose torchvision does not load: its data loaders import it, its models here never call it."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    try:
        import timm
    except (ImportError, RuntimeError):
        for name in [n for n in sys.modules if n.split(".")[0] in ("timm", "torchvision")]:
            del sys.modules[name]  # half imported
        with mock.patch.object(sys, "meta_path", [Finder(), *sys.meta_path]):
            import timm
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]  # others may look for the real one
    return timm
