"""Compiling: what a missing or failing compiler says, what the cache is keyed by, and folders that cannot be written."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from noting import noting
from plans import Code

import einfuse.runtime.backends  # noqa: F401  # found by name below
from einfuse import _files as files
from einfuse.codegen import cpu
from einfuse.codegen.plan import Arg, Block, KernelPlan
from einfuse.ir import EinfuseError

building = sys.modules["einfuse.codegen.cpu.build"]  # the attribute of that name is the function


def doubled() -> KernelPlan:
    c = Code(("i",))
    i = c.coordinate("i")
    x = c.load("x_i", "x", i)
    c.store("out", i, value=c.map("y", "+", x, x))
    return KernelPlan("doubled", "out[i] = x + x", (), Block("i", "N", 32), (), (Arg("x", 1, "f32"), Arg("out", 1, "f32", True)),
                      (), ("N",), (c.region,))  # fmt: skip


def test_a_build_is_kept_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = doubled()
    kernel = cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"])
    x, out = torch.arange(50.0), torch.zeros(50)
    kernel({"x": x, "out": out}, {}, {"N": 50})
    assert torch.equal(out, 2 * x)
    assert [p.name for p in tmp_path.iterdir()] == [kernel.library.name]
    monkeypatch.setattr(building, "_run", lambda *_: pytest.fail("compiled twice"))
    assert cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"]).library == kernel.library


def test_the_processor_and_the_compiler_are_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, names = doubled(), set()
    monkeypatch.setattr(building, "_compiled", lambda *_: b"")
    monkeypatch.setattr(building, "_function", lambda _, path: names.add(path))
    cpu.build(plan, cpu.emit(plan), tmp_path)
    monkeypatch.setattr(building, "processor", lambda: "another")
    cpu.build(plan, cpu.emit(plan), tmp_path)
    monkeypatch.setattr(building, "_version", lambda compiler: "another")
    cpu.build(plan, cpu.emit(plan), tmp_path)
    assert len(names) == 3


def test_cxxflags_come_last_and_are_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[list[str], str]] = []

    def compiled(compiler: str, options: list[str], source: str, name: str) -> bytes:
        seen.append((options, name))
        return b""

    monkeypatch.setattr(building, "_compiled", compiled)
    monkeypatch.setattr(building, "_function", lambda *_: None)
    plan = doubled()
    for text in ("", "-O1", "-O1 -DNAME='a b'"):
        monkeypatch.setenv("CXXFLAGS", text)
        cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"])
    (plain, _), (one, _), (two, _) = seen
    assert plain[-1] == "-O0"
    assert one[-2:] == ["-O0", "-O1"]
    assert two[-2:] == ["-O1", "-DNAME=a b"]
    assert len({path for _, path in seen}) == 3
    monkeypatch.setenv("CXXFLAGS", "-DNAME='a")
    with pytest.raises(cpu.BuildError, match="CXXFLAGS"):
        cpu.build(plan, cpu.emit(plan), tmp_path)


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EinfuseError, match=r"no C\+\+ compiler"):
        cpu.build(doubled(), cpu.emit(doubled()), tmp_path)


def test_another_compiler_than_the_one_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "_said", set())
    monkeypatch.setenv("CXX", "g++ -m64")
    assert all(Path(cpu.find_compiler()).is_file() for _ in range(2))
    (line,) = capsys.readouterr().err.splitlines()
    assert "$CXX is 'g++ -m64', and there is no such program; kernels are built with /" in line


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    with pytest.raises(cpu.BuildError, match=r"expected|error"):
        cpu.build(doubled(), "this is no C++", tmp_path, ["-O0"])
    assert list(tmp_path.iterdir()) == []


def doubles(kernel: cpu.CpuKernel) -> None:
    x, out = torch.arange(5.0), torch.zeros(5)
    kernel({"x": x, "out": out}, {}, {"N": 5})
    assert torch.equal(out, 2 * x)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    doubles(cpu.build(doubled(), cpu.emit(doubled()), tmp_path / "cache", ["-O0"]))


@pytest.mark.parametrize("damage", ["half", "one bit", "empty", "other", "not for this system"])
def test_a_damaged_entry_is_made_again(tmp_path: Path, damage: str) -> None:
    """Loaded as it is, half a library would end the process: its pages behind the end are not there."""
    plan = doubled()
    path = cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"]).library
    whole = path.read_bytes()
    at = len(whole) // 2
    bad = {
        "half": whole[:at],
        "one bit": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "empty": b"",
        "other": b"no library",
    }
    path.write_bytes(bad[damage] if damage in bad else files.sealed(path, b"a library of another system"))
    doubles(cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"]))
    assert files.opened(path, path.read_bytes()) is not None


def test_the_bytes_that_were_checked_are_the_bytes_that_run(tmp_path: Path) -> None:
    """What happens to the file afterwards changes nothing: kernels are loaded from memory."""
    plan = doubled()
    kernels = []
    for level in ("-O0", "-O1", "-O2"):
        kernel = cpu.build(plan, cpu.emit(plan), tmp_path, [level])
        with kernel.library.open("r+b") as file:
            file.truncate(10)
        kernels.append(kernel)
    for kernel in kernels:
        doubles(kernel)
    address = [ctypes.cast(k.function, ctypes.c_void_p).value for k in kernels]
    assert len(set(address)) == 3  # none was taken for another, though their descriptors had the same number


def test_without_files_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> int:
        raise PermissionError(errno.EACCES, "forbidden here")

    monkeypatch.setattr(os, "memfd_create", refused)
    monkeypatch.setattr(building.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    doubles(cpu.build(doubled(), cpu.emit(doubled()), tmp_path / "cache", ["-O0"]))
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_a_compiler_that_hangs_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with all that it started, and so does the wait for it."""
    compiler, ends = tmp_path / "cxx", tmp_path / "left"
    compiler.write_text(f"#!/bin/sh\nsh -c 'sleep 2; touch {ends}' &\nsleep 60\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(building, "LIMIT", 0.3)
    monkeypatch.setattr(building, "_hung", set())
    begin = time.monotonic()
    for said in (r"took more than 0\.3 s on the kernel", r"took more than 0\.3 s before"):
        with pytest.raises(cpu.BuildError, match=said):
            cpu.build(doubled(), cpu.emit(doubled()), tmp_path, ["-O0"])
    assert time.monotonic() - begin < 2
    time.sleep(2.2 - min(2.2, time.monotonic() - begin))
    assert not ends.exists()


WRITES_NONSENSE = 'while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"'


@pytest.mark.parametrize("script", ["exit 0", "kill -9 $$", "echo oops >&2; exit 4", WRITES_NONSENSE])
def test_a_compiler_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(cpu.BuildError, match=r"cannot be built|failed|cannot be loaded"):
        cpu.build(doubled(), cpu.emit(doubled()), tmp_path / "cache", ["-O0"])
    assert not (tmp_path / "cache").exists()


def test_a_kernel_with_a_long_name(tmp_path: Path) -> None:
    plan = replace(doubled(), name="doubled" * 60)
    kernel = cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"])
    doubles(kernel)
    assert kernel.library.exists()


def test_builders_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them builds, the others wait and load what it built."""
    plan = doubled()
    compiled: list[tuple[object, ...]] = []
    run = building._run
    monkeypatch.setattr(building, "_run", noting(compiled, lambda *args: args, run))
    with ThreadPoolExecutor(3) as pool:
        built = [pool.submit(cpu.build, plan, cpu.emit(plan), tmp_path, ["-O0"]) for _ in range(3)]
    assert len({b.result().library for b in built}) == 1
    assert [p.suffix for p in tmp_path.iterdir()] == [".so"]
    assert len(compiled) == 1
    assert not building._building


@pytest.mark.parametrize("fault", ["compiler", "disk", "options"])
def test_what_cannot_be_built_runs_as_torch(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning that says why, and the right result."""
    backends = sys.modules["einfuse.runtime.backends"]
    monkeypatch.setattr(backends, "_warned", [])
    if fault == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
    elif fault == "options":
        monkeypatch.setenv("CXXFLAGS", "--no-such-option")
    else:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(building.tempfile, "TemporaryDirectory", lambda **_: (_ for _ in ()).throw(full))
    plan, said = doubled(), {"compiler": "no C", "disk": "No space left", "options": "no-such-option"}[fault]
    backend = backends.BACKENDS["cpu"]
    with pytest.warns(UserWarning, match=f"(?s)torch code.*{said}"):
        kernel = backend.build(plan, backend.emit(plan), tmp_path / "cache")
    monkeypatch.undo()
    x, out = torch.arange(50.0), torch.zeros(50)
    kernel({"x": x, "out": out}, {}, {"N": 50})
    assert torch.equal(out, 2 * x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_threads_after_a_fork(tmp_path: Path) -> None:
    """A child may use threads although its parent has: it ends, with the right result."""
    plan, threads = doubled(), torch.get_num_threads()
    kernel = cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"])
    x, out = torch.arange(500.0), torch.zeros(500)
    torch.set_num_threads(2)
    try:
        kernel({"x": x, "out": out}, {}, {"N": 500})
        child = os.fork()
        if child == 0:  # no torch here but the call: torch's own threads are as lost
            signal.alarm(20)
            kernel({"x": x, "out": x}, {}, {"N": 500})
            os._exit(0 if x[499].item() == 998 else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)


def test_python_threads(tmp_path: Path) -> None:
    plan = doubled()
    kernel = cpu.build(plan, cpu.emit(plan), tmp_path, ["-O0"])

    def right(n: int) -> bool:
        x, out = torch.arange(float(n)), torch.zeros(n)
        for _ in range(20):
            kernel({"x": x, "out": out.zero_()}, {}, {"N": n})
        return torch.equal(out, 2 * x)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, range(100, 120)))


def test_text() -> None:
    """The same plan gives the same text; it holds the equations and the order of arguments."""
    text = cpu.emit(doubled())
    assert text == cpu.emit(doubled())
    assert "//   out[i] = x + x" in text
    assert "//   ptrs     x, out" in text
    assert "//   sizes    N, shape of x (1), shape of out (1)" in text


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_pool_of_threads_with_torch(tmp_path: Path) -> None:
    """A process that ran torch's products and a kernel on two threads holds one OpenMP runtime and one thread beside its own."""
    script = """
import os, re, sys, torch
import einfuse
torch.set_num_threads(2)
x = torch.randn(1, 4, 100, 16)
torch.randn(700, 700) @ torch.randn(700, 700)
alone = len(os.listdir("/proc/self/task"))
einfuse.compile("full")(x, x, x)
maps = open("/proc/self/maps").read()
print(alone, len(os.listdir("/proc/self/task")), len(set(re.findall(r"\\S*/lib(?:gomp|omp|iomp5)[-.\\w]*$", maps, re.M))))
"""
    env = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    before, after, runtimes = map(int, done.stdout.split())
    assert after == before
    assert runtimes == 1
