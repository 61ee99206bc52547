"""The cache on disk: which folder, what an entry is, what becomes of damage, and that neither disks nor other processes change a result."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked
import pytest
from noting import noting

from einfuse import _files as files
from einfuse.ir import EinfuseError
from einfuse.runtime import cache

RUN = """
import sys, torch, einfuse
q = torch.arange(96.0).reshape(1, 2, 6, 8).sin()
o = einfuse.compile("causal")(q, q, q)
expected = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
print("right" if torch.allclose(o, expected, atol=1e-5) else "WRONG")
"""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of this test's own; what is remembered of the usual one comes back."""
    path = tmp_path / "cache"
    monkeypatch.setenv(cache.FOLDER, str(path))
    monkeypatch.setattr(files, "_said", set())
    cache.folder.cache_clear()
    yield path
    cache.folder.cache_clear()


def started(code: str = RUN, **variables: str | None) -> subprocess.CompletedProcess[str]:
    """A new process, which has imported torch and einfuse; a variable that is None is not set."""
    env = {n: x for n, x in (os.environ | {"CXXFLAGS": "-O0"} | variables).items() if x is not None}
    return forked.run(code, env)


def right(done: subprocess.CompletedProcess[str], lines: int = 0, said: str = "") -> None:
    """The result, and so many lines on stderr."""
    assert (done.returncode, done.stdout.split()) == (0, ["right"]), done.stderr
    assert len(done.stderr.splitlines()) == lines, done.stderr
    assert said in done.stderr


def never() -> object:
    raise AssertionError("made again")


# -- entries -------------------------------------------------------------------------------------------------------------------------


def test_made_once_and_found_again(fresh: Path) -> None:
    assert cache.remembered("kind", "name", lambda: (1, "a")) == (1, "a")
    assert cache.remembered("kind", "name", never) == (1, "a")
    assert (fresh / "v1" / "kind" / "name.json").is_file()


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda d: d[:-1] + b"x", lambda d: d[: len(d) // 2], lambda d: d + b"\n", lambda _: b"", lambda _: bytes(500)],
    ids=["first byte", "last byte", "half", "longer", "empty", "zeros"],
)
def test_a_damaged_entry_is_made_again_and_reported_once(
    fresh: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    cache.remembered("kind", "name", lambda: "first")
    path = fresh / "v1" / "kind" / "name.json"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.remembered("kind", "name", lambda: "second") == "second"
    assert cache.remembered("kind", "name", never) == "second"
    assert capsys.readouterr().err.splitlines() == [f"einfuse: the cache entry {path} is damaged and is made again"]


def test_an_entry_under_another_name_is_damaged(fresh: Path) -> None:
    cache.remembered("kind", "a", lambda: 1)
    (fresh / "v1" / "kind" / "a.json").rename(fresh / "v1" / "kind" / "b.json")
    assert cache.remembered("kind", "b", lambda: 2) == 2


def test_a_digest_over_what_is_no_record(fresh: Path) -> None:
    """Whoever can write digests can still make nothing but records."""
    path = fresh / "v1" / "kind" / "name.json"
    files.keep(path, b'["true",["os:system",0]]')
    assert cache.remembered("kind", "name", lambda: 3) == 3
    files.keep(path, b"\x80\x04\x95")  # how a pickle begins
    assert cache.remembered("kind", "name", lambda: 4) == 4


@pytest.mark.parametrize("place", ["entry", "kind"])
def test_a_folder_or_file_in_the_way(fresh: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    if place == "entry":
        (cache.folder() / "kind" / "name.json").mkdir(parents=True)
    else:
        (cache.folder() / "kind").write_text("")
    for _ in range(2):
        assert cache.remembered("kind", "name", lambda: 5) == 5
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_threads_and_processes_meet_whole_entries(fresh: Path) -> None:
    """Some read while others write and others remove: everyone has the value, and nothing is said to be damaged."""
    value = tuple(range(20_000))

    def one(n: int) -> None:
        for _ in range(10):
            assert cache.remembered("kind", "name", lambda: value) == value
            if n == 0:
                cache.trim(1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(4)))
    assert not files._said


# -- keys ----------------------------------------------------------------------------------------------------------------------------


def test_the_key_names_every_version() -> None:
    import numpy
    import torch

    for name in (f"torch {torch.__version__}", f"numpy {numpy.__version__}", "python 3.", "sympy ", "triton ", "jinja2 "):
        assert name in cache.versions()


@pytest.mark.parametrize("part", ["runtime/tiles.py", "codegen/cpu/vector.h", "ir/expr.py", "dsl/parse.py"])
def test_a_change_of_our_sources_is_another_key(
    fresh: Path, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that leaves size and date as they were; a date alone changes nothing."""
    own = tmp_path / "einfuse"
    for name in ("runtime/cache.py", "runtime/tiles.py", "codegen/cpu/vector.h", "ir/expr.py", "dsl/parse.py"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_text("x = 1\n")
    monkeypatch.setattr(cache, "__file__", str(own / "runtime" / "cache.py"))
    before, state = cache._sources(), (own / part).stat()
    os.utime(own / part, ns=(1, 1))
    assert cache._sources() == before
    (own / part).write_text("x = 2\n")
    os.utime(own / part, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert cache._sources() != before


# -- the folder ----------------------------------------------------------------------------------------------------------------------


def test_the_folder_is_private(fresh: Path) -> None:
    assert cache.folder() == fresh / "v1"
    cache.remembered("kind", "name", lambda: 1)
    for path in (fresh, fresh / "v1", fresh / "v1" / "kind"):
        assert path.stat().st_mode & 0o777 == 0o700
    assert (fresh / "v1" / "kind" / "name.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("level", [".", "v1"])
def test_a_folder_that_others_may_write_to_is_refused(fresh: Path, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    (fresh / "v1").mkdir(0o700, parents=True)
    (fresh / level).chmod(0o777)
    spare = cache.folder()
    assert not spare.is_relative_to(fresh)
    assert spare.stat().st_mode & 0o777 == 0o700
    (line,) = capsys.readouterr().err.splitlines()
    assert str(fresh) in line
    assert "others may write to it (`chmod go-w` makes it private)" in line
    (fresh / level).chmod(0o755)
    cache.folder.cache_clear()
    assert cache.folder() == fresh / "v1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser makes files of others")
@pytest.mark.parametrize("link", [False, True])
def test_a_folder_of_another_user_is_refused(fresh: Path, link: bool, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir(0o755)
    os.chown(theirs, 12345, 12345)
    if link:
        fresh.symlink_to(theirs)
    else:
        theirs.rename(fresh)
    assert not cache.folder().is_relative_to(tmp_path)
    assert cache.refusal() == "it belongs to another user (12345, not 0)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser makes files of others")
def test_a_link_of_another_user_is_refused(fresh: Path, tmp_path: Path) -> None:
    """Where it leads to is ours, as somebody wishes who lays links among temporary files."""
    (tmp_path / "ours").mkdir(0o700)
    fresh.symlink_to(tmp_path / "ours")
    assert cache.refusal() is None
    os.chown(fresh, 12345, 12345, follow_symlinks=False)
    assert not cache.folder().is_relative_to(tmp_path)
    assert cache.refusal() == "it is a link of another user (12345)"


def test_a_link_in_place_of_an_entry_is_replaced(fresh: Path, tmp_path: Path) -> None:
    """What it leads to is neither taken for an entry nor written to, nor removed."""
    (tmp_path / "precious").write_text("mine")
    entry = cache.folder() / "kind" / "name.json"
    entry.parent.mkdir()
    entry.symlink_to(tmp_path / "precious")
    assert cache.remembered("kind", "name", lambda: 1) == 1
    assert (tmp_path / "precious").read_text() == "mine"
    assert not entry.is_symlink()
    (cache.folder() / "other").symlink_to(tmp_path)
    cache.trim(0)
    assert (tmp_path / "precious").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser can become another user")
def test_two_users_and_one_folder(tmp_path: Path) -> None:
    """The second one is told, keeps out of it, and is served all the same."""
    shared = tmp_path / "cache"
    code = f"""
import os
os.environ["EINFUSE_CACHE"] = {str(shared)!r}
from einfuse.runtime import cache
{{}}
print(cache.remembered("kind", "name", lambda: os.geteuid()), cache.folder().parent == cache.place())
"""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o005 != 0o005 and path.stat().st_uid == 0 and "pytest" in str(path):
            path.chmod(0o755)
    first = started(code.format(""))
    second = started(code.format("os.chmod(cache.place(), 0o755); os.seteuid(12345)"))
    assert first.stdout.split() == ["0", "True"], first.stderr
    assert second.stdout.split() == ["12345", "False"], second.stderr
    assert "it belongs to another user (0, not 12345)" in second.stderr


def test_a_file_in_place_of_the_folder(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh.write_text("precious")
    assert cache.folder().is_dir()
    assert "it is no folder" in capsys.readouterr().err
    assert fresh.read_text() == "precious"


def test_a_home_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    code = """
import os, platformdirs
os.path.expanduser = lambda path: path  # as for a user that no table knows
from einfuse.runtime import cache
print(cache.remembered("kind", "name", lambda: 7))
"""
    done = started(code, EINFUSE_CACHE=None, HOME=None, XDG_CACHE_HOME=None, TMPDIR=str(tmp_path / "tmp"))
    assert (done.stdout.split(), done.stderr) == (["7"], "")
    assert [p.relative_to(tmp_path).parts[:3] for p in tmp_path.rglob("name.json")] == [
        ("tmp", f"einfuse-{os.geteuid()}", "v1")
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "tmp"]


def test_a_relative_folder_stays_where_it_was(monkeypatch: pytest.MonkeyPatch, fresh: Path, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cache.FOLDER, "here")
    found = cache.folder()
    monkeypatch.chdir("/")
    assert found == tmp_path / "here" / "v1"
    assert cache.remembered("kind", "name", lambda: 1) == 1
    assert (tmp_path / "here" / "v1" / "kind" / "name.json").exists()


@pytest.mark.slow
def test_names_of_folders(tmp_path: Path) -> None:
    """A kernel is built and found again; a name that no file system takes is refused in one line."""
    signs, deep = "blanks, 'quotes\", zwölf 日本\ntwo lines $(id)", ["b" * 250] * 11
    for _ in range(2):
        right(started(EINFUSE_CACHE=str(tmp_path.joinpath(signs, *deep))))
    right(started(EINFUSE_CACHE=str(tmp_path / ("b" * 300))), 1, "File name too long")


def test_the_private_folder_ends_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    code = """
import os
from einfuse.runtime import cache
print(cache.folder())
if os.fork() == 0:
    raise SystemExit  # a child leaves it alone
os.wait()
assert cache.folder().is_dir()
"""
    done = started(code, EINFUSE_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.split()[0]).exists()


# -- size ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("", 2 << 30), ("0", 0), ("1000", 1000), ("5K", 5120), ("1.5 MiB", 3 << 19), ("2g", 2 << 30)]
)
def test_sizes(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.SIZE, text)
    assert cache.bound() == size


@pytest.mark.parametrize("text", ["lots", "-1", "1e9", "5X", "nan"])
def test_what_is_no_size(fresh: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.SIZE, text)
    with pytest.raises(EinfuseError, match=r"EINFUSE_CACHE_SIZE is a number of bytes such as 500M or 2G, found"):
        cache.folder()


def test_what_was_used_longest_ago_goes_first(fresh: Path) -> None:
    now = time.time()
    paths = [fresh / "v1" / "kind" / f"{n}.json" for n in range(8)]
    for n, path in enumerate(paths):
        files.keep(path, bytes(1000))
        os.utime(path, (now - 10_000 * (9 - n),) * 2)
    (fresh / "not ours").write_bytes(bytes(10_000))
    assert files.read(paths[0]) is not None  # a use
    cache.trim(5 * paths[0].stat().st_size)
    assert [p.exists() for p in paths] == [True, False, False, False, False, False, True, True]
    assert (fresh / "not ours").exists()
    cache.trim(5 * paths[0].stat().st_size)
    assert sum(p.exists() for p in paths) == 3


def test_what_died_half_written_is_swept(fresh: Path) -> None:
    files.keep(fresh / "v1" / "kind" / "whole.json", b"1")
    for name, age in (("old.part", 2 * cache.STALE), ("new.part", 0)):
        (fresh / "v1" / "kind" / name).write_bytes(b"x")
        os.utime(fresh / "v1" / "kind" / name, (time.time() - age,) * 2)
    cache.trim(cache.bound())
    assert sorted(p.name for p in (fresh / "v1" / "kind").iterdir()) == ["new.part", "whole.json"]


def test_the_bound_holds_while_entries_are_written(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.SIZE, "64K")
    for n in range(200):
        cache.remembered("kind", str(n), lambda: "x" * 1000)
    assert sum(x.size for x in cache.entries(cache.folder())) < 2 * 65536


def test_a_large_cache_is_seldom_counted(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 entries beside 4,000: counted each time they have grown by an eighth, and not after every 64."""
    (cache.folder() / "kind").mkdir()
    for n in range(4_000):
        (cache.folder() / "kind" / f"{n}.json").write_bytes(b"")
    counted: list[int] = []
    whole = cache.entries
    monkeypatch.setattr(cache, "entries", noting(counted, lambda root: 1, whole))
    for n in range(4_000, 6_000):
        cache.remembered("kind", str(n), lambda: 1)
    assert len(counted) == 4


# -- disks ---------------------------------------------------------------------------------------------------------------------------


def test_a_full_disk_costs_no_result(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files may have 100 bytes, so that writing fails halfway: whoever asks has the value, one line says it, nothing half is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    cache.folder()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        found = [cache.remembered("kind", str(n), lambda: "x" * 10_000) for n in range(3)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert found == ["x" * 10_000] * 3
    assert list((fresh / "v1" / "kind").iterdir()) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write to the cache" in line
    assert "File too large" in line


@pytest.mark.slow
def test_a_damaged_kernel_is_built_again(tmp_path: Path) -> None:
    """Truncated, a byte changed, emptied: no process dies of it, each says so once, and the next one finds it whole."""
    right(started(EINFUSE_CACHE=str(tmp_path)))
    (library,) = (tmp_path / "v1" / "cpu").glob("*.so")
    whole = library.read_bytes()
    middle = len(whole) // 2
    for bad in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :], b"", whole[: -files.TAIL]):
        library.write_bytes(bad)
        right(started(EINFUSE_CACHE=str(tmp_path)), 1, f"{library} is damaged and is made again")
        assert files.opened(library, library.read_bytes()) is not None
    right(started(EINFUSE_CACHE=str(tmp_path)))


@pytest.mark.slow
def test_every_entry_damaged(tmp_path: Path) -> None:
    right(started(EINFUSE_CACHE=str(tmp_path)))
    kept = [p for p in (tmp_path / "v1").rglob("*") if p.is_file()]
    for path in kept:
        path.write_bytes(flipped(path.read_bytes()))
    done = started(EINFUSE_CACHE=str(tmp_path))
    assert done.stdout.split() == ["right"], done.stderr
    right(started(EINFUSE_CACHE=str(tmp_path)))


@pytest.mark.slow
def test_a_mount_where_nothing_runs(tmp_path: Path) -> None:
    """Neither the cache nor the folder for temporary files needs to allow it; neither needs locks."""
    mount = tmp_path / "mount"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "noexec,mode=0700,size=16m", "tmpfs", str(mount)]
    if not sys.platform.startswith("linux") or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        right(started(EINFUSE_CACHE=str(mount / "cache")))
        right(started(EINFUSE_CACHE=str(mount / "cache")))
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        right(started(EINFUSE_CACHE=str(mount / "cache")))  # what is there is used
        right(started(EINFUSE_CACHE=str(mount / "cache"), CXXFLAGS="-O0 -DOTHER"), 1, "Read-only file system")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.slow
def test_a_tiny_disk(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "mode=0700,size=64k", "tmpfs", str(mount)]
    if not sys.platform.startswith("linux") or subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        for _ in range(2):
            right(started(EINFUSE_CACHE=str(mount)), 1, "No space left on device")
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.slow
def test_processes_that_race_and_die(tmp_path: Path) -> None:
    """Killed at any time while others start in the same folder: those that live are right, and what is left is whole."""
    env = os.environ | {"EINFUSE_CACHE": str(tmp_path), "CXXFLAGS": "-O0"}
    for n in range(5):
        killed = [subprocess.Popen([sys.executable, "-c", RUN], env=env, stdout=subprocess.DEVNULL) for _ in range(2)]
        time.sleep(0.6 + 0.4 * n)
        for process in killed:
            process.kill()
            process.wait()
    right(started(EINFUSE_CACHE=str(tmp_path)))
    found = cache.entries(tmp_path / "v1")
    assert all(x.intact for x in found if x.path.suffix != files.PART)
