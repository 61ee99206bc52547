"""Scores of a choice for some rows at a time: what is ranked is never in memory as a whole, and what there is of it stays in a cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Scalar
from einfuse.ir.nodes import Einsum
from einfuse.ir.passes import window as windowing
from einfuse.ir.passes.choose import Scores
from einfuse.runtime.binding import extent_of

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention

MOST = {"cpu": 1 << 20}
"""Scores of a window by kind of device: as many as a processor's cache holds; elsewhere `FAR`."""
FAR = 1 << 26
FEWEST = 64
"""Rows of a window: fewer would leave tiles empty."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The kernels of a scorer: those ``before`` run once for a call, ``last`` for some rows at a time, which are an ``axis`` of the scores."""

    before: tuple[Attention, ...]
    last: Attention
    window: windowing.Window
    axis: int

    @staticmethod
    def of(step: Scores, scorer: Attention) -> Windows | None:
        """None where no rank of the scores has rows that are independent and that some input tells the number of."""
        *before, last = scorer.stages or (scorer,)
        c = last.cascade
        values = next((x for x in c.body if isinstance(x, Einsum) and x.target == step.value), None)
        if values is None:
            return None
        reduced = {r for x in c.body if isinstance(x, Einsum) for r in x.over}
        for rank in values.ranks[: len(values.ranks) - step.ranked]:
            if not c.rank(rank).is_sequence or rank in reduced:
                continue
            found = windowing.run(c, rank)
            if found.cut:
                made = type(last)(found.cascade, last.backend, last.strict, wide=last.wide, form="quadratic", inner=True)
                return Windows(tuple(before), made, found, len(c.over) + values.ranks.index(rank))
        return None

    def rows(self, step: Scores, sizes: Mapping[str, int], kind: str) -> tuple[int, int]:
        """How many rows there are, and how many a window has."""
        c = step.cascade
        values = next(x for x in c.body if isinstance(x, Einsum) and x.target == step.value)
        all_rows = extent_of(c, self.window.rank, sizes)
        others = math.prod(extent_of(c, r, sizes) for r in (*c.over, *values.ranks) if r != self.window.rank)
        return all_rows, max(FEWEST, MOST.get(kind, FAR) // max(1, others))

    def __call__(
        self, known: Mapping[str, torch.Tensor | Scalar], rows: int, step: int
    ) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
        """Every window with the outputs of the last kernel for its rows."""
        for kernel in self.before:
            known = {**known, **_outputs(kernel, known)}
        for lo in range(0, rows, step):
            n = min(step, rows - lo)
            views = {name: _tensor(known[name]).narrow(axis, lo, n) for name, axis in self.window.cut}
            yield lo, n, _outputs(self.last, {**known, **views, self.window.at: lo})


def _outputs(attention: Attention, known: Mapping[str, torch.Tensor | Scalar]) -> dict[str, torch.Tensor]:
    outs = attention(**{t.name: known[t.name] for t in attention.cascade.inputs})
    return dict(zip(attention.cascade.outs, outs if isinstance(outs, tuple) else (outs,), strict=True))


def _tensor(x: torch.Tensor | Scalar) -> torch.Tensor:
    assert isinstance(x, torch.Tensor), "what has rows is a tensor"
    return x
