"""Programs of scans: as `Program`, with the chunked form, its derived backward and plans of their own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from einfuse.codegen import Storage, scan
from einfuse.codegen.scan import Piece
from einfuse.ir import Blocked, Cascade, Scan
from einfuse.ir.passes import chunk, chunk_backward, infer_space
from einfuse.ir.passes.backward import Backward, Step, adjoint
from einfuse.ir.passes.chunk_backward import ScanBackward
from einfuse.runtime import cache
from einfuse.runtime.backends import Backend
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Node
from einfuse.runtime.outputs import Output, accumulation, described, of_forward
from einfuse.runtime.pieces import Pieces
from einfuse.runtime.program import Program
from einfuse.runtime.recent import Recent
from einfuse.runtime.specialise import Specialisation

FINE = 16
"""Points of a block where products are multiply-adds of registers, as in fp32 on a GPU: a thread holds whole rows and columns of both
factors. Blocks of 64 points end in some 40 kernels of `linear`, forward and backward, those of 16 in 5."""
HELD = 128
"""Features of a state beside which blocks of 64 points spill."""


@dataclass
class ScanProgram(Program):
    """Everything derived from a cascade with a scan; the chunked form is made once, of ``points`` a block (default: the pass decides)."""

    cascade: Scan
    points: int | None = None
    blocked: Blocked = field(init=False)
    derived: dict[tuple[str, ...], ScanBackward] = field(default_factory=dict)
    kernels: Recent[tuple[Specialisation, int], Pieces] = field(default_factory=Recent)
    exact: ClassVar[bool] = True  # how many blocks there are is part of what kernels hand to each other

    def __post_init__(self) -> None:
        super().__post_init__()
        self.blocked = chunk.run(infer_space.run(self.cascade), self.points)

    @functools.cached_property
    def fine(self) -> ScanProgram:
        """The same in blocks of fewer points; itself where they have no more already."""
        return self if self.step <= FINE else ScanProgram(self.cascade, self.strict, points=FINE)

    def suited(self, backend: Backend, narrow: Callable[[], bool]) -> ScanProgram:
        """The program whose blocks are of a size for that back end and dtype.

        On GPUs 16-bit blocks are as long as the matrix units like them, where a program holds them beside the features of its state.
        """
        if not backend.short_blocks:
            return self
        many = any(isinstance(r.size, int) and r.size > HELD for r in self.blocked.ranks if r.kind == "feature")
        return self if not many and narrow() else self.fine

    @property
    def rank(self) -> str:
        """The rank that is scanned."""
        return self.blocked.fold.rank

    @property
    def step(self) -> int:
        return self.blocked.fold.step

    def backward_of(self, wanted: tuple[str, ...]) -> Backward:
        """The backward as one cascade, which runs the scan from its end."""
        found = self.reverse(wanted)
        return Backward((), ((found.backward, tuple(found.gradients)),))

    def reverse(self, wanted: tuple[str, ...]) -> ScanBackward:
        """The backward for gradients of ``wanted``; derived once."""
        if wanted not in self.derived:
            name = cache.key("scan backward", self.blocked.digest, wanted)
            self.derived[wanted] = cache.remembered("backward", name, lambda: chunk_backward.run(self.blocked, wanted))
        return self.derived[wanted]

    def steps(self, wanted: tuple[str, ...], backend: Backend | None) -> tuple[Step, ...]:
        """The backward's one cascade, on every back end."""
        return self.backward_of(wanted).cascades

    def saving(self, wanted: tuple[str, ...]) -> Cascade:
        """The forward cascade that also gives out the states the backward starts its blocks from."""
        return self.reverse(wanted).forward if wanted else self.blocked

    def outputs(self, cascade: Cascade, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, Output]:
        """What a forward writes: outputs along the scan in the dtype of the inputs, states in accumulation precision."""
        return of_forward(cascade, self.cascade.outs, tensors, self._counted(cascade, sizes))

    def _counted(self, cascade: Cascade, sizes: Mapping[str, int]) -> dict[str, int]:
        """The sizes, with the number of blocks."""
        (fold,) = cascade.folds
        if fold.count is None:
            return dict(sizes)
        points = extent_of(cascade, fold.rank, sizes)
        return {**sizes, str(cascade.rank(fold.count).size): (points + fold.step - 1) // fold.step}

    # -- running -----------------------------------------------------------------------------------------------------------------

    def nodes(self, cascade: Cascade, given: Given, backend: Backend, outs: Mapping[str, Output]) -> Sequence[Node]:
        """The kernels of a scan, forward or backward, for tensors like these."""
        known = self.sized(cascade, given.read_by(cascade).more(described(outs)))
        kernel = Specialisation.of(cascade, known, backend)
        points = math.prod(extent_of(cascade, r, known.sizes) for r in cascade.over)
        crew = backend.crew(points, extent_of(cascade, self.rank, known.sizes) > 4 * self.step)
        return self.kernels.made((kernel, crew), lambda: Pieces(_pieces(kernel, crew), backend)).nodes(known, outs)

    def sized(self, cascade: Cascade, given: Given) -> Given:
        """With the number of blocks."""
        return given.more(sizes=self._counted(cascade, given.sizes))

    def adjoints(self, gradients: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The gradients of outputs under the names that the backward reads them by: along the scan, or of its last states."""
        return {f"{adjoint(n)}{end}": g for n, g in gradients.items() for end in ("", "_last")}

    def written(self, step: Step, known: Given, apart: Collection[str] = ()) -> dict[str, Output]:
        """What the backward writes: all in accumulation precision."""
        shaped = of_forward(step[0], (), known.tensors, known.sizes)
        wide = accumulation(known.tensors.values())
        return {n: replace(x, dtype=wide) for n, x in shaped.items()}

    def candidates(
        self,
        backend: Backend,
        storage: Iterable[Mapping[str, Storage]],
        backward: bool,
        sizes: Mapping[str, int],
    ) -> list[Piece]:
        """The forward's kernels, and with ``backward`` the other's; ``storage`` one table for each."""
        out: list[Piece] = []
        for c, table in zip(self.cascades(backward), storage, strict=True):
            static = {r.size: sizes.get(r.size, 64) for r in c.ranks if r.kind == "feature" and isinstance(r.size, str)}
            out += backend.pieces(scan.lower(c, table, static), 1)
        return out


def _pieces(kernel: Specialisation, crew: int) -> tuple[Piece, ...]:
    """The kernels of a scan, from disk where they were made before."""

    def make() -> tuple[Piece, ...]:
        return kernel.backend.pieces(scan.lower(kernel.cascade, kernel.storage, kernel.static), crew)

    return cache.remembered("plan", cache.key("scan", kernel.key, crew), make)
