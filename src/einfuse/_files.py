"""Files that other processes read and write at the same time, or damage.

An *entry* ends in a digest of its name and its bytes. It is read whole and right or not at all, so what it holds may be loaded and run.
"""

from __future__ import annotations

import contextlib
import hashlib
import linecache
import os
import sys
import tempfile
import time
import weakref
from pathlib import Path

MARK = b"\n# einfuse sha256 "
"""Stands between what an entry holds and its digest; a comment in Python, and behind the end of what a linker reads."""
TAIL = len(MARK) + 65
FRESH = 3600
"""Seconds after which a use of an entry is written down again: the order in which unused ones go is that of hours."""
PART = ".part"
"""The suffix of files that are still being written."""

_said: set[str] = set()


def write_atomic(path: Path, data: bytes) -> None:
    """Writes beside and renames: readers see nothing or all of it, and the last of two equal writers wins."""
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=PART)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def sealed(path: Path, body: bytes) -> bytes:
    """The bytes of an entry that holds ``body``. One that is moved to another name is damaged."""
    return body + MARK + hashlib.sha256(path.name.encode() + b"\0" + body).hexdigest().encode() + b"\n"


def opened(path: Path, data: bytes) -> bytes | None:
    """What the bytes of an entry hold; None where they are not as they were written."""
    body = data[:-TAIL]
    return body if data == sealed(path, body) else None


def keep(path: Path, body: bytes) -> None:
    """Keeps an entry. A disk that is full or cannot be written is reported once: it costs time in later processes and no result."""
    try:
        write_atomic(path, sealed(path, body))
    except FileNotFoundError:
        pass  # another process has removed the folder, or what stood half written in it
    except OSError as error:
        say(f"einfuse: cannot write to the cache {shown(path.parents[1])} ({reason(error)}): later processes build again")


def read(path: Path) -> bytes | None:
    """What an entry holds; None where there is none. A damaged one is reported, and is None as well: it is made again."""
    try:
        with path.open("rb") as file:
            data, used = file.read(), os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    body = opened(path, data)
    if body is None:
        damaged(path)
    elif time.time() - used > FRESH:
        with contextlib.suppress(OSError):  # removed meanwhile, or a read-only disk
            os.utime(path)
    return body


def damaged(path: Path) -> None:
    """Reports an entry that cannot be used."""
    say(f"einfuse: the cache entry {shown(path)} is damaged and is made again")


def keep_text(path: Path, source: str, holder: object) -> None:
    """Makes a generated Python text known by its path: to tracebacks, to Triton, which reads a kernel's source back, and to people.

    In memory it is kept as long as ``holder``, what was made of it.
    """
    linecache.cache[str(path)] = (len(source), None, source.splitlines(True), str(path))
    weakref.finalize(holder, linecache.cache.pop, str(path), None).atexit = False
    if read(path) != source.encode():
        keep(path, source.encode())


def stem(name: str, text: str) -> str:
    """The name of a file, without suffix, for what follows from ``text``: readable, and short enough for any file system."""
    return f"einfuse_{name[:48]}_{hashlib.sha256(text.encode()).hexdigest()[:20]}"


def say(line: str) -> None:
    """One line on stderr, once a process."""
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)


def shown(path: Path) -> str:
    """A path as part of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def reason(error: OSError) -> str:
    """What went wrong, without the path."""
    return error.strerror or str(error)
