"""`build`: a generated text compiled, kept in a folder under a name made of all that it depends on, and loaded."""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import functools
import itertools
import os
import platform
import shlex
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einfuse import _files as files
from einfuse.codegen.cpu import keep, openmp
from einfuse.codegen.cpu.names import identifier
from einfuse.codegen.plan import KernelPlan, table_ranks
from einfuse.ir import EinfuseError, Scalar

if TYPE_CHECKING:
    import torch

# -O2 already has the second option; with $CXXFLAGS=-O1 it keeps multiply-adds in one rounding, which the errors of kernels rest on.
FLAGS = ("-std=c++20", "-O2", "-fexpensive-optimizations", "-march=native", "-fno-math-errno", "-fno-trapping-math",
         "-ffp-contract=fast", "-fno-semantic-interposition", "-w", "-shared", "-fPIC", "-fopenmp", "-fno-exceptions")  # fmt: skip

LIMIT = 600
"""Seconds after which a compiler hangs: the largest kernels take some 20."""


class BuildError(EinfuseError):
    """No compiler, or it failed: ``str(error)`` says which, with the end of its output."""


@dataclass(frozen=True, slots=True)
class CpuKernel:
    """A loaded kernel; a call writes the plan's output tensors. ``library`` is the entry of the cache that holds it.

    ``keeps``: it may keep scores that several loops read (`keep`); the plan of a scan has no such loops.
    """

    plan: KernelPlan
    library: Path
    function: Any
    flags: tuple[str, ...] = ()
    keeps: bool = False
    _frugal: list[CpuKernel] = field(default_factory=list, compare=False, repr=False)  # made once, from what cannot change
    _tensors: tuple[str, ...] = field(init=False, compare=False, repr=False)
    _tables: tuple[str, ...] = field(init=False, compare=False, repr=False)
    _axes: int = field(init=False, compare=False, repr=False)
    _several: bool = field(init=False, compare=False, repr=False)
    """Whether there are loops that share what it keeps."""
    _threads: Callable[[], int] = field(init=False, compare=False, repr=False)
    _address: Callable[[torch.Tensor], int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        import torch

        tables = tuple(f"{r}_{k}" for r in table_ranks(self.plan) for k in ("count", "block"))
        object.__setattr__(self, "_tensors", tuple(t.name for t in self.plan.tensors))
        object.__setattr__(self, "_tables", tables)
        object.__setattr__(self, "_axes", sum(t.axes for t in self.plan.tensors))
        several = self.keeps and len(self.plan.folds) > 1
        object.__setattr__(self, "_several", several)
        object.__setattr__(self, "_threads", torch.get_num_threads)
        object.__setattr__(self, "_address", torch.Tensor.data_ptr)

    def frugal(self) -> CpuKernel:
        """The kernel of the same plan that keeps no scores for later loops; printed and loaded once."""
        if not self._frugal:
            from einfuse.codegen.cpu import source

            self._frugal.append(build(self.plan, source.emit(self.plan, keeps=False), self.library.parent, self.flags))
        return self._frugal[0]

    def __call__(self, tensors: Mapping[str, torch.Tensor], params: Mapping[str, Scalar], sizes: Mapping[str, int]) -> None:
        """Runs it."""
        self.bound(tensors, params, sizes)(tensors)

    def bound(
        self, tensors: Mapping[str, torch.Tensor], params: Mapping[str, Scalar], sizes: Mapping[str, int]
    ) -> Callable[[Mapping[str, torch.Tensor]], None]:
        """What runs it for tensors that lie as these do, of these numbers and sizes, with the tables among them: what is left is pointers.

        Threads may share it: what they share is only read.
        """
        plan = self.plan
        if self._several and keep.too_long(plan, sizes):
            return self.frugal().bound(tensors, params, sizes)
        names, function, threads, address = self._tensors, self.function, self._threads, self._address
        strides: list[int] = []
        counts = [sizes[n] for n in plan.sizes]
        for n in names:
            x = tensors[n]
            assert x.is_cpu, f"{n} is on {x.device}: this kernel runs on the CPU"
            strides += x.stride()
            counts += x.shape
        assert len(strides) == self._axes, f"the kernel {plan.name} was built for tensors of other axes"
        tables = [tensors[n].contiguous() for n in self._tables]
        rest = [x.data_ptr() for x in tables]
        held = array("q", strides + counts + [x.shape[-1] for x in tables[1::2]])
        numbers = array("d", [params[n] for n, _ in plan.params])
        first, last = held.buffer_info()[0], numbers.buffer_info()[0]
        second = first + 8 * self._axes
        packed = struct.Struct(f"{len(names) + len(rest)}q").pack  # ctypes hands on where the bytes lie

        def again(tensors: Mapping[str, torch.Tensor]) -> None:
            pointers = packed(*map(address, map(tensors.__getitem__, names)), *rest)
            if call(function, pointers, first, second, last, threads()):
                raise MemoryError(f"not enough memory for the scratch buffers of the kernel {plan.name}")

        again.held = held, numbers, tables  # type: ignore[attr-defined]  # memory that it points to
        return again


def build(plan: KernelPlan, source: str, folder: Path, flags: Sequence[str] = (), keeps: bool = False) -> CpuKernel:
    """The kernel of a text that `emit` made, with scores kept where it ``keeps`` them. Raises BuildError."""
    path, function = library(plan.name, source, folder, flags)
    return CpuKernel(plan, path, function, tuple(flags), keeps)


def library(name: str, source: str, folder: Path, flags: Sequence[str] = ()) -> tuple[Path, Any]:
    """The function ``einfuse_kernel`` of a text, and the entry of ``folder`` that holds it, which machines with different processors may share.

    ``flags``, and then those of ``$CXXFLAGS``, are given to the compiler after `FLAGS`. Raises BuildError.
    """
    compiler = find_compiler()
    options = [*FLAGS, *flags, *own_flags()]
    runtime = openmp.loaded()
    key = "\n".join([source, *options, _version(compiler), processor(), runtime.name if runtime else ""])
    path = folder / f"{files.stem(identifier(name), key)}.so"
    with _one_builder(path):
        kept = files.read(path)
        if kept is not None:
            with contextlib.suppress(BuildError):  # whole, but for another system, as where containers share a home folder
                return path, _function(kept, path)
        made = _compiled(compiler, options, source, path.stem)
        function = _function(made, path)
        files.keep(path, made)
        return path, function


def compiled(source: str, name: str, options: Sequence[str]) -> bytes:
    """The library of a text that is no kernel's alone; ``options`` and then those of ``$CXXFLAGS`` follow `FLAGS`. Raises BuildError."""
    return _compiled(find_compiler(), [*FLAGS, *own_flags()], source, identifier(name), options)


@contextlib.contextmanager
def _one_builder(path: Path) -> Iterator[None]:
    """Threads that want the same kernel wait for the first of them and find what it has built; others go on."""
    lock = _building.setdefault(path, threading.Lock())
    try:
        with lock:
            yield
    finally:
        _building.pop(path, None)


_building: dict[Path, threading.Lock] = {}


_forked: ThreadPoolExecutor | None = None


def _after_fork() -> None:
    global _forked
    _forked = ThreadPoolExecutor(1, "einfuse")
    _building.clear()  # threads that held its locks are not here


os.register_at_fork(after_in_child=_after_fork)


def call(function: Any, *args: Any) -> int:
    """The function's answer. In a forked process GNU OpenMP would wait for threads that only the parent has: a new thread starts anew."""
    return int(_forked.submit(function, *args).result() if _forked else function(*args))


def own_flags() -> list[str]:
    """The options of ``$CXXFLAGS``, quoted as in a shell: the last word on ours. Raises BuildError where a quote is left open."""
    text = os.environ.get("CXXFLAGS", "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BuildError(f"$CXXFLAGS cannot be read ({error}): {text}") from error


def find_compiler() -> str:
    """The path of ``$CXX``, c++, g++ or clang++, the first that exists; one line on stderr says that it is not the one of ``$CXX``."""
    asked = os.environ.get("CXX")
    for name in filter(None, (asked, "c++", "g++", "clang++")):
        found = shutil.which(name)
        if found:
            if asked and name != asked:
                files.say(f"einfuse: $CXX is {asked!r}, and there is no such program; kernels are built with {found}")
            return found
    raise BuildError("no C++ compiler: looked for $CXX, c++, g++ and clang++; install one, or use the torch back end")


def _function(library: bytes, path: Path) -> Any:
    try:
        function = _loaded(library, path.stem).einfuse_kernel
    except (OSError, AttributeError) as error:
        raise BuildError(f"the compiled kernel {path.name} cannot be loaded: {error}") from error
    function.restype = ctypes.c_int
    function.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int]
    return function


def _loaded(library: bytes, name: str) -> ctypes.CDLL:
    """The library made of these very bytes. It is unloaded when none of its functions is left, which ctypes would never do."""
    made = _opened(library, name)
    weakref.finalize(made, _ctypes.dlclose, made._handle).atexit = False
    return made


def _opened(library: bytes, name: str) -> ctypes.CDLL:
    """The library of bytes that nobody can change, truncate or forbid to run: they are in memory, not in a folder.

    Where a system has no such files, or forbids to run them, they go through a file of this process alone.
    """
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError), os.fdopen(os.memfd_create(name), "wb") as file:
            file.write(library)
            file.flush()
            # the loader takes two files of one name for one library, and numbers are used again: more slashes are another name
            return ctypes.CDLL(f"/proc/self/fd/{'/' * next(_loads)}{file.fileno()}")
    with tempfile.NamedTemporaryFile(prefix=name, suffix=".so") as other:
        other.write(library)
        other.flush()
        return ctypes.CDLL(other.name)


_loads = itertools.count()


def _compiled(compiler: str, options: Sequence[str], source: str, name: str, more: Sequence[str] = ()) -> bytes:
    """The library that the compiler makes of a text. Raises BuildError."""
    if compiler in _hung:
        raise BuildError(f"{compiler} took more than {LIMIT} s before")
    try:
        with tempfile.TemporaryDirectory(prefix="einfuse-", ignore_cleanup_errors=True) as folder:
            library = Path(folder, "kernel.so")
            command = [compiler, *options, "-o", str(library), "-x", "c++", "-", *more, *openmp.link_options()]
            code, output = _run(command, source)
            if code:
                tail = "\n".join(output.strip().splitlines()[-20:])
                raise BuildError(f"{compiler} failed ({code}) on the kernel {name}:\n{tail}")
            return library.read_bytes()
    except subprocess.TimeoutExpired as error:
        _hung.add(compiler)
        raise BuildError(f"{compiler} took more than {LIMIT} s on the kernel {name}") from error
    except OSError as error:
        raise BuildError(f"{name} cannot be built: {error}") from error


_hung: set[str] = set()


def _run(command: Sequence[str], text: str) -> tuple[int, str]:
    """The exit code and messages of a compiler that reads ``text``. It ends with this call, and so do the processes it started.

    Raises subprocess.TimeoutExpired after `LIMIT` seconds.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        process_group=0,
    ) as process:
        try:
            _, output = process.communicate(text, timeout=LIMIT)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, output


@functools.cache
def _version(compiler: str) -> str:
    """What changes when another compiler is installed: its file. Asking it for its version takes longer than running a kept kernel."""
    path = Path(compiler).resolve()
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"


@functools.cache
def processor() -> str:
    """What ``-march=native`` depends on: the architecture, the model and its instruction sets."""
    lines: list[str] = []
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU implementer", "CPU part"):
                lines.append(line)
            if not line.strip() and lines:
                break  # the first processor stands for all
    except OSError:
        lines.append(platform.processor())
    return "\n".join([platform.machine(), *lines])
