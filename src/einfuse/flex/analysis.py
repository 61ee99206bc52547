"""Which blocks of a mask hold no points, some points or all points: from the symbolic analysis, and from points only where it is not sure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from einfuse.flex import assemble
from einfuse.flex.masks import MaskFunction
from einfuse.flex.tracer import Tracer
from einfuse.flex.value import Value
from einfuse.ir import at_points, classify
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.tiles import EMPTY, FULL, PARTIAL

POINTS = 1 << 22
"""The most points that are evaluated at once."""

Kinds = npt.NDArray[np.int8]


def kinds(mask: MaskFunction, shape: tuple[int, int, int, int], block: tuple[int, int], device: torch.device) -> Kinds:
    """``[B, H, row block, column block]``: 0 empty, 1 partial, 2 full, exactly.

    Memory is that of the blocks. Raises SpecError where the mask cannot be traced.
    """
    return _Blocks(*traced(mask, shape, device), shape, block).kinds()


def traced(mask: MaskFunction, shape: tuple[int, int, int, int], device: torch.device) -> tuple[Tracer, Value]:
    """A mask function as a condition. Raises SpecError where it cannot be traced."""
    tracer = Tracer(dict(zip(("b", "h", "i", "j"), shape, strict=True)), torch.float32, device)
    return tracer, tracer.condition(mask)


class _Blocks:
    def __init__(self, tracer: Tracer, mask: Value, shape: tuple[int, int, int, int], block: tuple[int, int]) -> None:
        self.mask, self.shape, self.block = mask, shape, block
        self.cascade = assemble.condition(tracer, mask)
        self.sizes = assemble.sizes_of(tracer)
        tensors, self.numbers = assemble.arguments(tracer)
        self.tensors = {n: x.detach().cpu() for n, x in tensors.items()}

    def kinds(self) -> Kinds:
        batch, heads, rows, columns = self.shape
        height, width = self.block
        arrays = {n: x.numpy() for n, x in self.tensors.items() if x.dtype != torch.bfloat16}
        found = classify(
            self.mask.expr,
            ("i", rows, height),
            ("j", columns, width),
            self.sizes,
            self.numbers,
            arrays,
            {"b": batch, "h": heads},
        )
        kind = found.kind.copy()
        for at, window, blocks in self._unsure(self._mixed_or(kind, found.ranks, arrays), found.ranks):
            live = self._points(window)
            for n in blocks:
                lo = n * width - window["j"][0]
                tile = live[:, lo : lo + width]
                whole = bool(tile.all()) and tile.shape == (height, width)
                kind[(*at, n)] = FULL if whole else PARTIAL if bool(tile.any()) else EMPTY
        for n, size, edge in ((rows, height, kind[..., -1:, :]), (columns, width, kind[..., -1:])):
            if n % size:  # as torch has it: what lies beyond the mask is not there
                np.minimum(edge, PARTIAL, out=edge)
        own = [r in found.ranks for r in ("b", "h")]
        kind = kind.reshape(*(n if mine else 1 for n, mine in zip((batch, heads), own, strict=True)), *kind.shape[-2:])
        return np.broadcast_to(kind, (batch, heads, *kind.shape[-2:]))

    def _mixed_or(
        self, kind: Kinds, ranks: tuple[str, ...], arrays: Mapping[str, npt.NDArray[np.generic]]
    ) -> npt.NDArray[np.bool_]:
        """The blocks to be looked through: what may be partial, less those of whose corners some hold and some do not."""
        unsure: npt.NDArray[np.bool_] = np.equal(kind, PARTIAL)
        place = np.nonzero(unsure)
        seen = np.zeros((2, len(place[0])), np.bool_)
        _, _, rows, columns = self.shape
        for down, across in itertools.product((False, True), repeat=2):
            at = dict(zip(ranks, place[:-2], strict=True))
            for r, x, tile, n, last in (
                ("i", place[-2], self.block[0], rows, down),
                ("j", place[-1], self.block[1], columns, across),
            ):
                at[r] = np.minimum((x + last) * tile, n) - last
            known = at_points(self.mask.expr, at, self.sizes, self.numbers, arrays)
            seen |= known == np.array([[EMPTY], [FULL]])
        unsure[place] = ~seen.all(0)
        return unsure

    def _unsure(
        self, unsure: npt.NDArray[np.bool_], ranks: tuple[str, ...]
    ) -> Iterator[tuple[tuple[int, ...], dict[str, tuple[int, int]], list[int]]]:
        """Runs of such blocks in one row of blocks, with the window of points they span."""
        height, width = self.block
        most = max(1, POINTS // (height * width))
        for at in map(tuple, np.argwhere(unsure.any(-1)).tolist()):
            columns = np.nonzero(unsure[at])[0]
            window = {r: (k, k + 1) for r, k in zip(ranks, at[:-1], strict=True)}
            window["i"] = (at[-1] * height, min((at[-1] + 1) * height, self.shape[2]))
            start = 0
            for stop in range(1, len(columns) + 1):
                if stop == len(columns) or columns[stop] - columns[start] >= most or columns[stop] - columns[stop - 1] > 1:
                    run = [int(c) for c in columns[start:stop]]
                    yield at, {**window, "j": (run[0] * width, min((run[-1] + 1) * width, self.shape[3]))}, run
                    start = stop

    def _points(self, window: dict[str, tuple[int, int]]) -> torch.Tensor:
        """The mask at every point of a window of queries and keys."""
        ranks = ("b", "h", "i", "j")
        inputs = {**self.tensors, **self.numbers}
        full = {r: window.get(r, (0, 1)) for r in ranks}
        (live,) = evaluate_indices(self.cascade, (self.mask.expr,), ranks, inputs, self.sizes, full)
        return live.bool().expand(1, 1, *(full[r][1] - full[r][0] for r in ("i", "j")))[0, 0]
