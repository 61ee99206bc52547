"""The back ends behind one protocol, chosen at one place."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import torch

from einfuse.codegen import KernelPlan, Storage, both, hold
from einfuse.codegen.plan import plain
from einfuse.codegen.scan import Piece, ScanPlan
from einfuse.codegen.targets import Target
from einfuse.ir import EinfuseError, Scalar, ranking
from einfuse.runtime.devices import Precision, fp32_products, target_of
from einfuse.runtime.names import NAMES
from einfuse.runtime.names import BackendName as BackendName

Kernel = Callable[[Mapping[str, torch.Tensor], Mapping[str, Scalar], Mapping[str, int]], int | None]
"""Runs one plan: tensors (outputs included), host numbers and sizes, all by name. Gives the number of values that spilled, if known."""

Tilings = tuple[tuple[int, int], ...]
Sorted = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Backend(Protocol):
    """A way to run plans. ``tilings`` gives the tiles and steps that suit the dtype and widest feature of a call, and the number of blocks
    of ``gradients`` that a kernel of a backward adds up (0 in a forward), the best first: the next is taken where a plan is too large to be
    worth compiling (not ``holds``) or a kernel turns out to spill registers. ``prepared`` is the plan as it will be printed: with ranks
    that fit into a block held whole where that pays; ``small`` says of sizes that are known at launch only how large they are at most.
    ``merge`` makes one plan of two (prepared) ones that walk the same pairs, the first by rows, where it can; ``merges`` says whether that
    pays for so many ambient points. ``workers`` says how many tiles run at once, ``beside`` how many of `narrow` rows a worker holds.
    ``identity`` is all of it that texts depend on. ``row_values``: what the kernels of a backward need of one row alone is made by a kernel
    before them (`ir.passes.row_values`); ``by_place``: they add up gradients of tables that pairs read, row by row (`ir.passes.by_place`).
    Calls of at most ``narrow`` rows take the tiling of such a tile with the longest step, if any.
    ``pieces`` are the kernels of a scan, for so many threads a point of the ambient ranks as ``crew`` gives (``long``: there is work for
    several), ``build_piece`` one of them. ``short_blocks``: products of 32 bits, or beside wide states, are registers' work. ``best`` is
    the choice of coordinates, as `ir.ranking` says it, of values in memory; ``by_block`` sorts rows by the blocks that they list, as
    `lists` says, those that need no mask apart where masks and bounds are dear (``dear_masks``). ``in_turns``: points may run one by one, so
    that what lists of blocks drive keeps its states in a cache. ``on`` is the back end for tensors of a device.
    """

    @property
    def name(self) -> BackendName: ...
    @property
    def identity(self) -> str: ...
    @property
    def row_values(self) -> bool: ...
    @property
    def by_place(self) -> bool: ...
    @property
    def narrow(self) -> int: ...
    @property
    def beside(self) -> int: ...
    @property
    def short_blocks(self) -> bool: ...
    @property
    def in_turns(self) -> bool: ...
    @property
    def dear_masks(self) -> bool: ...

    def tilings(self, storage: Storage, width: int, gradients: int) -> Tilings: ...
    def prepared(self, plan: KernelPlan, small: Mapping[str, int]) -> KernelPlan: ...
    def holds(self, plan: KernelPlan) -> bool: ...
    def emit(self, plan: KernelPlan) -> str: ...
    def build(self, plan: KernelPlan, source: str, folder: Path) -> Kernel: ...
    def workers(self, device: torch.device) -> int: ...
    def merges(self, points: int) -> bool: ...
    def merge(self, rows: KernelPlan, columns: KernelPlan) -> KernelPlan | None: ...
    def crew(self, points: int, long: bool) -> int: ...
    def pieces(self, plan: ScanPlan, crew: int) -> tuple[Piece, ...]: ...
    def build_piece(self, piece: Piece, folder: Path) -> Kernel: ...
    def best(self, values: torch.Tensor, exists: torch.Tensor | None, slots: int, folder: Path) -> torch.Tensor: ...
    def by_block(self, lists: torch.Tensor, index: torch.Tensor, span: int, tile: int, room: int, folder: Path) -> Sorted: ...
    def on(self, device: torch.device) -> Backend: ...


class Folder(Protocol):
    """What the folder of a back end in `einfuse.codegen` gives."""

    def emit(self, plan: KernelPlan) -> str: ...
    def build(self, plan: KernelPlan, source: str, folder: Path) -> Kernel: ...


@dataclass(frozen=True, slots=True)
class Usual:
    """What most back ends say: the kernels of their folder, one worker, no kernels of two plans, scans as plain torch."""

    name: BackendName
    row_values: bool = False
    by_place: bool = False
    narrow: int = 0
    beside: int = 1
    short_blocks: bool = False
    in_turns: bool = False
    dear_masks: bool = False

    @property
    def identity(self) -> str:
        return self.name

    @property
    def folder(self) -> Folder:
        return cast(Folder, importlib.import_module(f"einfuse.codegen.{self.name}"))

    def emit(self, plan: KernelPlan) -> str:
        return self.folder.emit(plan)

    def build(self, plan: KernelPlan, source: str, folder: Path) -> Kernel:
        return self.folder.build(plan, source, folder)

    def prepared(self, plan: KernelPlan, small: Mapping[str, int]) -> KernelPlan:
        return hold(plan, small)

    def holds(self, plan: KernelPlan) -> bool:
        return True

    def workers(self, device: torch.device) -> int:
        return 1

    def merges(self, points: int) -> bool:
        return False

    def merge(self, rows: KernelPlan, columns: KernelPlan) -> KernelPlan | None:
        return None

    def crew(self, points: int, long: bool) -> int:
        return 1

    def pieces(self, plan: ScanPlan, crew: int) -> tuple[Piece, ...]:
        from einfuse.codegen.scan import emit_torch, team

        return (team.Whole(plan, emit_torch.emit(plan)),)

    def build_piece(self, piece: Piece, folder: Path) -> Kernel:
        from einfuse.codegen.torch import build

        return build(piece.plan, piece.source, folder)  # type: ignore[arg-type]  # it reads the name alone

    def best(self, values: torch.Tensor, exists: torch.Tensor | None, slots: int, folder: Path) -> torch.Tensor:
        return ranking.best(values, exists, slots)

    def by_block(self, lists: torch.Tensor, index: torch.Tensor, span: int, tile: int, room: int, folder: Path) -> Sorted:
        from einfuse.runtime.lists import by_block

        return by_block(lists, index, span, tile, room)

    def on(self, device: torch.device) -> Backend:
        return self  # type: ignore[return-value]  # whatever has the rest of the protocol


@dataclass(frozen=True, slots=True)
class CpuBackend(Usual):
    """C++ with vector extensions and OpenMP; a kernel that cannot be built here runs as plain torch, which a warning says once."""

    name: BackendName = "cpu"
    by_place: bool = True
    in_turns: bool = True

    def tilings(self, storage: Storage, width: int, gradients: int) -> Tilings:
        from einfuse.codegen import cpu

        return cpu.narrower(cpu.tile(storage, width, gradients > 0, cpu.caches()))

    def prepared(self, plan: KernelPlan, small: Mapping[str, int]) -> KernelPlan:
        """A loop lets tiles share what is packed for them: those of a point, and points that take turns. Where there is one, none does."""
        plan = plain(plan)
        whole = hold(plan, small)
        return whole if whole.tile is None and not any(b.turns for b in plan.ambient) else plan

    def build(self, plan: KernelPlan, source: str, folder: Path) -> Kernel:
        from einfuse.codegen import cpu

        try:
            return cpu.build(plan, source, folder, keeps=True)
        except cpu.BuildError as error:
            _warn_of_torch(str(error))
            return TorchBackend().build(plan, TorchBackend().emit(plan), folder)

    def workers(self, device: torch.device) -> int:
        return torch.get_num_threads()

    def merges(self, points: int) -> bool:
        """A merged plan saves two products of seven, and keeps the tiles of a point on one thread."""
        threads = torch.get_num_threads()
        return points >= 3 * threads or (points >= threads and points % threads == 0)

    def merge(self, rows: KernelPlan, columns: KernelPlan) -> KernelPlan | None:
        from einfuse.codegen import cpu

        return both(rows, columns) or cpu.merge(rows, columns)

    def crew(self, points: int, long: bool) -> int:
        """One where every thread has a point of its own, or there is little to do."""
        threads = torch.get_num_threads()
        return -(-threads // points) if points < threads and long else 1

    def pieces(self, plan: ScanPlan, crew: int) -> tuple[Piece, ...]:
        from einfuse.codegen.scan import team

        return team.kernels(plan, crew)

    def build_piece(self, piece: Piece, folder: Path) -> Kernel:
        from einfuse.codegen import cpu

        return cpu.build(piece.plan, piece.source, folder, ("-O2",))  # type: ignore[arg-type]  # it reads what both plans have

    def best(self, values: torch.Tensor, exists: torch.Tensor | None, slots: int, folder: Path) -> torch.Tensor:
        from einfuse.codegen import cpu

        if values.dtype == torch.float32 and values.numel() and slots:
            try:
                return cpu.best(values, exists, slots, folder)
            except cpu.BuildError as error:
                _warn_of_torch(str(error))
        return ranking.best(values, exists, slots)

    def by_block(self, lists: torch.Tensor, index: torch.Tensor, span: int, tile: int, room: int, folder: Path) -> Sorted:
        from einfuse.codegen import cpu

        try:
            return cpu.by_block(lists, index, span, tile, room, folder)
        except cpu.BuildError as error:
            _warn_of_torch(str(error))
            return Usual.by_block(self, lists, index, span, tile, room, folder)


@dataclass(frozen=True, slots=True)
class TritonBackend(Usual):
    """Triton, for GPUs; on CPU tensors under its interpreter. Tiles suit ``target``; fp32 products have ``precision``, scans exact ones."""

    name: BackendName = "triton"
    target: Target = "sm_90"
    precision: Precision = "ieee"
    processors: int | None = None  # multiprocessors of a GPU that is not at hand
    row_values: bool = True
    narrow: int = 16
    beside: int = 3
    short_blocks: bool = True
    dear_masks: bool = True

    @property
    def identity(self) -> str:
        return f"{self.name} {self.target}" + (f" {self.precision}" if self.precision != "ieee" else "")

    def tilings(self, storage: Storage, width: int, gradients: int) -> Tilings:
        from einfuse.codegen import triton

        return triton.tilings(storage, width, gradients, self.target, self.precision)

    def holds(self, plan: KernelPlan) -> bool:
        from einfuse.codegen import triton

        return triton.holds(plan)

    def emit(self, plan: KernelPlan) -> str:
        from einfuse.codegen import triton

        return triton.emit(plan, triton.Options(target=self.target, precision=self.precision))

    def workers(self, device: torch.device) -> int:
        """The multiprocessors of a GPU; the interpreter is one."""
        if self.processors is not None:
            return self.processors
        return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

    def pieces(self, plan: ScanPlan, crew: int) -> tuple[Piece, ...]:
        from einfuse.codegen.scan import ladder

        return ladder.kernels(plan, self.target)

    def build_piece(self, piece: Piece, folder: Path) -> Kernel:
        from einfuse.codegen import triton

        return triton.build(piece.plan, piece.source, folder)  # type: ignore[arg-type]  # it reads the name alone

    def on(self, device: torch.device) -> Backend:
        """For the kind of GPU that a device is, of which a machine may have several, as torch's switch is now."""
        if device.type != "cuda":
            return self
        target = target_of(device)
        return replace(self, target=target, precision=fp32_products(target))


@dataclass(frozen=True, slots=True)
class TorchBackend(Usual):
    """Plain torch, tile by tile: readable, and what runs where there is no compiler."""

    name: BackendName = "torch"

    def tilings(self, storage: Storage, width: int, gradients: int) -> Tilings:
        return ((256, 256),)

    def prepared(self, plan: KernelPlan, small: Mapping[str, int]) -> KernelPlan:
        return hold(plain(plan), small)


@dataclass(frozen=True, slots=True)
class LoopsBackend(Usual):
    """Plans run as they are written, in straight loops: for reading, and for checking the others."""

    name: BackendName = "loops"

    def tilings(self, storage: Storage, width: int, gradients: int) -> Tilings:
        return ((16, 16),)

    def merges(self, points: int) -> bool:
        return points > 1  # what is merged on a CPU is checked, and what is not

    def merge(self, rows: KernelPlan, columns: KernelPlan) -> KernelPlan | None:
        return CpuBackend().merge(rows, columns)

    def prepared(self, plan: KernelPlan, small: Mapping[str, int]) -> KernelPlan:
        return plan


@dataclass(frozen=True, slots=True)
class PallasBackend(Usual):
    """Pallas kernels of JAX, in Pallas' interpret mode. Scans are refused."""

    name: BackendName = "pallas"

    def tilings(self, storage: Storage, width: int, gradients: int) -> Tilings:
        return ((64, 64),)

    def prepared(self, plan: KernelPlan, small: Mapping[str, int]) -> KernelPlan:
        return plain(plan)

    def pieces(self, plan: ScanPlan, crew: int) -> tuple[Piece, ...]:
        raise EinfuseError(f"{plan.name} is a scan, for which the back end pallas has no kernels; use cpu, triton or torch")


BACKENDS: dict[BackendName, Backend] = {
    "cpu": CpuBackend(),
    "triton": TritonBackend(),
    "torch": TorchBackend(),
    "loops": LoopsBackend(),
    "pallas": PallasBackend(),
}
assert tuple(BACKENDS) == NAMES, "every name has a back end"


_warned: list[str] = []


def _warn_of_torch(reason: str) -> None:
    """One warning a process: the kernels that follow most likely fail for the same reason."""
    if not _warned:
        _warned.append(reason)
        warnings.warn(f"CPU kernels run as tiled torch code, several times slower: {reason}", stacklevel=2)


def interpret_triton() -> None:
    """Without a GPU, Triton kernels run in Triton's interpreter. Triton reads this when it is imported: later it has no effect."""
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")


def choose(device: torch.device, wanted: BackendName | None = None) -> Backend:
    """The back end for tensors on ``device``; ``wanted`` overrides. Raises EinfuseError for a name that does not exist."""
    if wanted is None:
        wanted = "triton" if device.type == "cuda" else "cpu" if device.type == "cpu" and compiler() else "torch"
    return named(wanted).on(device)


def named(name: BackendName) -> Backend:
    """The back end of that name. Raises EinfuseError where there is none."""
    if not isinstance(name, str) or name not in BACKENDS:
        found = repr(name) if isinstance(name, str) else type(name).__name__
        raise EinfuseError(f"there is no back end {found}; choose from {', '.join(BACKENDS)}")
    return BACKENDS[name]


def at_hand(name: BackendName) -> Backend:
    """The back end of that name as it is for the current GPU, where there is one. Raises EinfuseError for a name that does not exist."""
    found = named(name)
    return found.on(torch.device("cuda", torch.cuda.current_device())) if torch.cuda.is_available() else found


@functools.cache
def compiler() -> str | None:
    """The C++ compiler that kernels are built with; one warning where there is none."""
    from einfuse.codegen import cpu

    try:
        return cpu.find_compiler()
    except cpu.BuildError:
        warnings.warn(
            f"einfuse found no C++ compiler on {sys.platform} (looked for $CXX, c++, g++, clang++): "
            "CPU kernels run as tiled torch code, several times slower",
            stacklevel=2,
        )
        return None
