"""The kernels of one scan as nodes of a graph, with what they hand to each other, and the sums of what they give out in shares."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from einfuse.codegen.scan import Piece, ScanPlan
from einfuse.runtime import cache
from einfuse.runtime.backends import Backend, Kernel
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Host, Launched, Node, Tensors, tried
from einfuse.runtime.graph import Kernel as Launch
from einfuse.runtime.outputs import Output


@dataclass(slots=True)
class Pieces:
    """Kernels of one back end, built when they first run. Smaller ones take the place of one that spills registers."""

    pieces: tuple[Piece, ...]
    backend: Backend
    built: dict[str, Kernel] = field(default_factory=dict)  # by text

    def nodes(self, given: Given, outs: Mapping[str, Output]) -> list[Node]:
        """The launches on tensors like these, which write ``outs``."""
        nodes: list[Node] = []
        left = dict(outs)
        for piece in self.pieces:
            plan = piece.plan
            wide = torch.float64 if plan.compute == "f64" else torch.float32
            made = {s.name: Output(tuple(_extent(plan, r, given.sizes) for r in s.ranks), wide) for s in plan.scratch}
            shares = {"part": plan.parts, "block": _blocks(plan, given.sizes)}
            leading = {p.tensor: tuple(shares[a] for a in p.axes) for p in plan.partial}
            summed = {
                n: made.pop(n) if n in made else left.pop(n) for n in leading
            }  # what kernels hand on may come in shares, too
            apart = {n: Output((*leading[n], *x.shape), wide) for n, x in summed.items()}
            own = {t.name for t in plan.tensors}
            whole = {n: left.pop(n) for n in [n for n in left if n in own]}
            names = {n: f"shares of {n}" for n in apart}
            read = tuple(n for n in own if n not in made and n not in whole and n not in apart)
            makes = {**made, **whole, **{names[n]: x for n, x in apart.items()}}
            launch = functools.partial(self._launch, piece)
            nodes.append(Launch(plan.name, read, makes, given, functools.partial(_itself, piece), launch, names=names))
            for n, more in leading.items():
                nodes.append(_summed(n, names[n], summed[n], len(more)))
        assert not left, f"no kernel writes {', '.join(left)}"
        return nodes

    def _launch(self, piece: Piece) -> Launched:
        if piece.source not in self.built:
            self.built[piece.source] = self.backend.build_piece(piece, cache.folder() / self.backend.name)
        kernel = self.built[piece.source]
        return lambda tensors, numbers, sizes: tried(lambda: kernel(tensors, numbers, sizes), lambda: self._smaller(piece))

    def _smaller(self, piece: Piece) -> bool:
        """Whether smaller kernels take the place of one from now on."""
        less = piece.smaller()
        self.pieces = tuple(q for p in self.pieces for q in (less if less and p is piece else (p,)))
        return bool(less)


def _itself(piece: Piece) -> Piece:
    return piece


def _summed(name: str, shares: str, out: Output, axes: int) -> Host:
    """An output as the sum of its shares along the first ``axes``."""

    def do(tensors: Tensors, call: Given) -> None:
        tensors[name].copy_(tensors[shares].sum(list(range(axes))))

    return Host("add up shares", (shares,), (), do, {name: out})


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
