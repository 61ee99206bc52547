"""The kernels of one scan, run in turn: what they hand to each other is allocated here, and shares of an output are added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from einfuse.codegen import scan
from einfuse.codegen.scan import Piece, ScanPlan
from einfuse.ir import Scalar
from einfuse.runtime import cache
from einfuse.runtime.backends import BackendName, Kernel
from einfuse.runtime.given import Given
from einfuse.runtime.launch import Recorded, recorder
from einfuse.runtime.memory import empty


@dataclass(slots=True)
class Sequence:
    """Kernels of one back end, built when they first run. One that spills registers is right but slow: the next call gets smaller ones."""

    pieces: tuple[Piece, ...]
    backend: BackendName
    built: dict[int, Kernel] = field(default_factory=dict)  # by place among the pieces

    def run(self, given: Given) -> None:
        """Writes the outputs among its tensors."""
        held = dict(given.tensors)
        spilled = [self._launch(n, held, given.numbers, given.sizes) for n in range(len(self.pieces))]
        if any(spilled):
            smaller = [piece.smaller() if s else () for piece, s in zip(self.pieces, spilled, strict=True)]
            if any(smaller):
                self.pieces = tuple(q for p, less in zip(self.pieces, smaller, strict=True) for q in less or (p,))
                self.built = {}

    def _launch(
        self, n: int, held: dict[str, torch.Tensor], numbers: Mapping[str, Scalar], sizes: Mapping[str, int]
    ) -> int | None:
        plan = self.pieces[n].plan
        wide = torch.float64 if plan.compute == "f64" else torch.float32
        device = next(iter(held.values())).device
        for s in plan.scratch:
            held[s.name] = empty([_extent(plan, r, sizes) for r in s.ranks], wide, device)
        shares = {"part": plan.parts, "block": _blocks(plan, sizes)}
        leading = {p.tensor: [shares[a] for a in p.axes] for p in plan.partial}
        buffers = {t: torch.empty([*more, *held[t].shape], dtype=wide, device=device) for t, more in leading.items()}
        if (note := recorder()) is not None:
            note(Recorded(self.pieces[n], Given({**held, **buffers}, numbers, sizes)))
            return None
        if n not in self.built:
            self.built[n] = scan.build(plan, self.pieces[n].source, self.backend, cache.folder() / self.backend)
        spills = self.built[n]({**held, **buffers}, numbers, sizes)
        for t, x in buffers.items():
            held[t].copy_(x.sum(list(range(len(leading[t])))))
        return spills


def _blocks(plan: ScanPlan, sizes: Mapping[str, int]) -> int:
    points = plan.size if isinstance(plan.size, int) else sizes[plan.size]
    return -(-points // plan.step)


def _extent(plan: ScanPlan, rank: str, sizes: Mapping[str, int]) -> int:
    """Of a rank of a tensor between kernels."""
    if rank == plan.count:
        return _blocks(plan, sizes)
    if rank.startswith("<"):
        return plan.step
    size = plan.size if rank in plan.moving else next(b.size for b in (*plan.ambient, *plan.features) if b.rank == rank)
    return size if isinstance(size, int) else sizes[size]
