"""How long columns take to arrive beside what is computed meanwhile, and so in how many pieces they had best come.

at once      arrival + work
n pieces     own columns first, then each piece as it arrives; every piece leaves states that are written, read and merged
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from einfuse.codegen.cost import DEVICES
from einfuse.distributed.routes import Rows
from einfuse.ir import Cascade
from einfuse.ir.rewrite import every_einsum

PIECES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Rates:
    """A second of a device: bytes that it gets from others, operations of products of 16-bit and of wider numbers, bytes of its memory; and
    the seconds that a kernel takes to be called."""

    link: float
    products: float
    wide_products: float
    memory: float
    call: float


_H100 = DEVICES["h100"]
RATES = {
    "cpu": Rates(1e9, 1e11, 1e11, 2e10, 5e-5),
    "cuda": Rates(5e10, _H100.products / 2, _H100.wide_products / 2, _H100.memory, 1e-5),
}
"""What is taken unless a caller knows better: 10 Gb/s and a few cores; 400 Gb/s and a GPU whose kernels reach half of its peak."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of the slowest device until its rows are done: with all columns ``at_once``, and in so many ``pieces`` beside the kernels."""

    arrival: float
    at_once: float
    pieces: Mapping[int, float]

    @property
    def best(self) -> int:
        """In how many pieces columns had best arrive."""
        return min(self.pieces, key=lambda n: (self.pieces[n], n))

    @property
    def ahead(self) -> bool:
        """Whether rows should begin before columns arrive."""
        return self.pieces[self.best] < self.at_once


def times(arrival: Sequence[float], own: Sequence[float], others: Sequence[float], state: Sequence[float]) -> Times:
    """The times of devices that need ``arrival`` seconds for all columns of others, work so long on their ``own`` and on those of ``others``,
    and so long on one ``state``.
    """
    at_once = max(a + w + x for a, w, x in zip(arrival, own, others, strict=True))
    found = {}
    for n in PIECES:
        done = []
        for a, w, x, s in zip(arrival, own, others, state, strict=True):
            now = w + s
            for k in range(1, n + 1):
                now = max(now, a * k / n) + x / n + s
            done.append(now)
        found[n] = max(done)
    return Times(max(arrival), at_once, found)


def operations(c: Cascade, rows: str, columns: str, extent: Callable[[str], int]) -> float:
    """Operations of products that one pair takes, at one point of the ambient ranks."""
    total = 0
    for x in every_einsum(c):
        ranks = {*x.ranks, *x.over}
        if {rows, columns} <= ranks:
            total += 2 * math.prod(map(extent, ranks - {rows, columns}))
    return float(total)


def pairs(live: npt.NDArray[np.bool_], tile: int, rows: Sequence[Rows], columns: Sequence[Rows]) -> list[float]:
    """The pairs of live tiles of every device's rows and columns."""
    n, m = live.shape
    out = []
    for r, c in zip(rows, columns, strict=True):
        down, across = (np.bincount((x // tile).numpy(), minlength=size) for x, size in ((r, n), (c, m)))
        out.append(float(down @ live @ across))
    return out


def in_turn(own: Sequence[Rows], wanted: Sequence[Rows], pieces: int) -> list[list[Rows]]:
    """The columns of others that every device wants, in so many pieces: first those of the devices next to it, so that all send at once."""
    owner = np.empty(sum(map(len, own)), np.int64)
    for d, rows in enumerate(own):
        owner[rows.numpy()] = d
    out = []
    for d, w in enumerate(wanted):
        turn = np.argsort((owner[w.numpy()] - d) % len(own), kind="stable")
        ends = [len(w) * k // pieces for k in range(pieces + 1)]
        out.append([w[turn[a:b]].sort().values for a, b in itertools.pairwise(ends)])
    return out
