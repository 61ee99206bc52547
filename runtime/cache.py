"""Where built things are kept: plans and kernel sources, keyed by content, safe under concurrent processes."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import platformdirs

from einfuse.codegen.files import write_atomic

T = TypeVar("T")


@functools.cache
def folder() -> Path:
    """``$EINFUSE_CACHE``, or the user's cache folder; a temporary one where neither can be written."""
    wanted = Path(os.environ.get("EINFUSE_CACHE") or platformdirs.user_cache_dir("einfuse"))
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError as error:
        spare = Path(tempfile.mkdtemp(prefix="einfuse-"))
        print(
            f"einfuse: cannot write to the cache {wanted} ({error.strerror}); using {spare} until this process ends",
            file=sys.stderr,
        )
        return spare


@functools.cache
def versions() -> str:
    """What makes a cached object stale: our own version and sources, torch and triton."""
    root = Path(__file__).resolve().parents[1]
    own = hashlib.sha256()
    for path in sorted(
        p
        for part in ("ir", "dsl", "codegen")
        for p in (root / part).rglob("*")
        if p.suffix in (".py", ".h", ".j2", ".lark", ".attn")
    ):
        own.update(f"{path.name}:{path.stat().st_mtime_ns}:{path.stat().st_size}".encode())
    return f"{version('torch')}|{own.hexdigest()}"


def content(*parts: object) -> str:
    """A hash of the parts alone: the same in every process and version."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def key(*parts: object) -> str:
    """A content hash of the parts and of the versions they were made with."""
    return content(versions(), *parts)


def remembered(kind: str, name: str, make: Callable[[], T]) -> T:
    """The object of this kind and key, from disk or made now (and kept; a cache that cannot be written costs only time)."""
    path = folder() / kind / f"{name}.pickle"
    try:
        loaded: T = pickle.loads(path.read_bytes())
        return loaded
    except (OSError, pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError):
        pass  # absent, or written by another version: made again below
    value = make()
    try:
        write_atomic(path, pickle.dumps(value))
    except OSError:
        pass  # a full or read-only disk: the value itself is good
    return value
