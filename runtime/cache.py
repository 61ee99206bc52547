"""Where derived and built things are kept on disk: entries with a digest, keyed by content, in a folder that is the user's alone.

docs/cache.md says what a user sees of it.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import itertools
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import platformdirs

from einfuse import _files as files
from einfuse.ir import EinfuseError
from einfuse.runtime import records

T = TypeVar("T")

LAYOUT = "v1"
"""The folder of our entries within the user's: nothing outside of it is counted or removed."""
FOLDER, SIZE = "EINFUSE_CACHE", "EINFUSE_CACHE_SIZE"
"""The variables that choose the folder and the most bytes that it holds."""
USUAL_SIZE = "2G"
LEFT = 0.75
"""The share of the most bytes that is left when entries are removed."""
OFTEN, SELDOM, GROWTH = 64, 512, 1 / 8
"""Entries are counted after the first one that a process writes, and again after that share of those there are: a large cache takes longer to
count. It is after at least `OFTEN` more and at most `SELDOM`."""
STALE = 24 * 3600
"""Seconds after which a half-written file belongs to a process that died."""


@functools.cache
def folder() -> Path:
    """The folder of the entries, made if it is missing; a private temporary one, which a line on stderr says, where it cannot be trusted.

    Raises EinfuseError where `SIZE` is no size.
    """
    bound()
    wanted = place()
    refused = _make(wanted, wanted / LAYOUT) or refusal()
    if refused is None:
        return wanted / LAYOUT
    spare = Path(tempfile.mkdtemp(prefix="einfuse-"))
    atexit.register(_remove, spare, os.getpid())
    files.say(f"einfuse: the cache {files.shown(wanted)} is not used: {refused}; using {spare} until this process ends")
    return spare


def place() -> Path:
    """The folder that the user asked for, ``$EINFUSE_CACHE``, or one among the user's caches; that of a user without a home is temporary."""
    if asked := os.environ.get(FOLDER):
        return Path(os.path.abspath(asked))
    try:
        usual = Path(platformdirs.user_cache_dir("einfuse"))
    except RuntimeError:  # no home, says one version; another one says ~
        usual = Path("~")
    return usual if usual.is_absolute() else Path(tempfile.gettempdir(), f"einfuse-{os.geteuid()}")


def refusal() -> str | None:
    """Why that folder is not trusted with what is loaded and run; None where it is, and where it does not exist yet."""
    for path in (place(), place() / LAYOUT):
        try:
            found, link = path.stat(), path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return files.reason(error)
        if not stat.S_ISDIR(found.st_mode):
            return "it is no folder"
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            return f"it belongs to another user ({found.st_uid}, not {os.geteuid()})"
        if hasattr(os, "geteuid") and link.st_uid not in (os.geteuid(), 0):
            return f"it is a link of another user ({link.st_uid})"
        if found.st_mode & 0o022:
            return "others may write to it (`chmod go-w` makes it private)"
    return None


def _make(*paths: Path) -> str | None:
    """Makes folders that only this user may enter, and says why one cannot be made."""
    for path in paths:
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            return "it is no folder"
        except OSError as error:
            return files.reason(error)
    return None


def _remove(path: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a child that was forked meanwhile
        shutil.rmtree(path, ignore_errors=True)


def bound() -> int:
    """The most bytes that the entries take: ``$EINFUSE_CACHE_SIZE``, such as 500M. Raises EinfuseError where that is no size."""
    text = os.environ.get(SIZE) or USUAL_SIZE
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise EinfuseError(f"{SIZE} is a number of bytes such as 500M or 2G, found {text!r}")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


# -- keys ----------------------------------------------------------------------------------------------------------------------------


@functools.cache
def versions() -> str:
    """What an entry was made with: our own sources, Python, and the packages that plans follow from."""
    packages = (f"{n} {_version(n)}" for n in ("jinja2", "lark", "numpy", "sympy", "torch", "triton"))
    return "|".join([_sources(), f"python {platform.python_version()}", *packages])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _sources() -> str:
    """A digest of what our sources say. It is worked out again where any file was changed, moved or put back, whatever its date says."""
    root = os.path.realpath(Path(__file__).parents[1])
    found = sorted(x for part in ("codegen", "dsl", "ir", "runtime") for x in _texts(os.path.join(root, part)))
    states = ((path, os.stat(path)) for path in found)
    state = content(*(f"{path}:{s.st_dev}:{s.st_ino}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}" for path, s in states))

    def digest() -> str:
        return content(*(f"{os.path.relpath(x, root)} {hashlib.sha256(Path(x).read_bytes()).hexdigest()}" for x in found))

    return remembered("sources", state, digest)


def _texts(path: str) -> Iterator[str]:
    for x in os.scandir(path):
        if x.is_dir():
            yield from _texts(x.path)
        elif x.name.endswith((".py", ".h", ".cpp", ".j2", ".lark", ".attn")):
            yield x.path


def content(*parts: object) -> str:
    """A hash of the parts alone: the same in every process and version."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:32]


def key(*parts: object) -> str:
    """A content hash of the parts and of the versions they were made with."""
    return content(versions(), *parts)


# -- entries -------------------------------------------------------------------------------------------------------------------------


def remembered(kind: str, name: str, make: Callable[[], T]) -> T:
    """The object of this kind and key (a plain record), from disk or made now and kept."""
    root = folder()
    path = root / kind / f"{name}.json"
    body = files.read(path)
    if body is not None:
        try:
            found: T = records.loads(body)
            return found
        except records.RecordError:
            files.damaged(path)  # by whoever wrote a digest to it
    value = make()
    files.keep(path, records.dumps(value))
    if next(_written) >= _due.get(root, 0):
        most = bound()
        _due[root] = sys.maxsize  # one thread counts
        left = trim(most)
        _due[root] = next(_written) + min(max(OFTEN, int(GROWTH * left)), SELDOM)
    return value


_written = itertools.count()
_due: dict[Path, int] = {}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of the cache: when it was last used (to the hour), and its bytes."""

    used: float
    size: int
    place: str

    @property
    def path(self) -> Path:
        return Path(self.place)

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def intact(self) -> bool | None:
        """Whether it is as it was written; None where it is gone."""
        try:
            return files.opened(self.path, self.path.read_bytes()) is not None
        except FileNotFoundError:
            return None
        except OSError:
            return False


def entries(root: Path) -> list[Entry]:
    """The entries below a folder, the one that was used longest ago first. Other processes may be writing and removing there."""
    found = []
    for kind in _listed(root):
        for x in _listed(kind.path) if kind.is_dir(follow_symlinks=False) else ():
            try:
                state = x.stat(follow_symlinks=False)
            except OSError:
                continue  # renamed or removed meanwhile
            found.append(Entry(state.st_mtime, state.st_size, x.path))
    return sorted(found, key=lambda x: (x.used, x.place))


def _listed(path: Path | str) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(path))
    except OSError:
        return []  # not there, or no longer


def trim(most: int) -> int:
    """Removes what was used longest ago where the entries take more than ``most`` bytes, and what died while it was written; how many are left.

    A process that has opened an entry reads it to its end all the same; one that comes later makes it again.
    """
    found = entries(folder())
    latest = max((x.used for x in found), default=0.0)
    total = sum(x.size for x in found)
    wanted, removed = LEFT * most if total > most else total, 0
    for x in found:
        gone = x.used < latest - STALE if x.place.endswith(files.PART) else total > wanted
        if gone and remove(x):
            total -= x.size
            removed += 1
    return len(found) - removed


def remove(entry: Entry) -> bool:
    """Removes an entry. False where that cannot be."""
    try:
        entry.path.unlink(missing_ok=True)
    except OSError:
        return False
    return True
