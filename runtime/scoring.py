"""Scores of a choice for some rows at a time: what is ranked is never in memory as a whole, and what there is of it stays in a cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade, Scalar, interpret
from einfuse.ir.passes import window as windowing
from einfuse.ir.passes.choose import Scores
from einfuse.ir.rewrite import elsewhere
from einfuse.runtime import binding
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given

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
        found = _rows(last.cascade, step)
        if found is None:
            return None
        made = type(last)(found.cascade, last.backend, last.strict, wide=last.wide, form="quadratic", inner=True)
        return Windows(tuple(before), made, found, _axis(step, found))

    def rows(self, step: Scores, sizes: Mapping[str, int], kind: str) -> tuple[int, int]:
        """How many rows there are, and how many a window has."""
        c = step.cascade
        values = next(x for x in c.einsums if x.target == step.value)
        all_rows = extent_of(c, self.window.rank, sizes)
        others = math.prod(extent_of(c, r, sizes) for r in (*c.over, *values.ranks) if r != self.window.rank)
        return all_rows, max(FEWEST, MOST.get(kind, FAR) // max(1, others))

    def __call__(
        self, known: Mapping[str, torch.Tensor | Scalar], rows: int, step: int
    ) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
        """Every window with the outputs of the last kernel for its rows. What is cut is widened window by window, within a cache."""
        cut = {name for name, _ in self.window.cut}
        known = {n: x if n in cut else widened(x) for n, x in known.items()}
        for kernel in self.before:
            known = {**known, **_outputs(kernel, known)}
        for lo, n, mine in _cut(self.window, known, rows, step):
            yield lo, n, _outputs(self.last, mine)


def interpreted(step: Scores, known: Mapping[str, torch.Tensor | Scalar], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The outputs of a step by interpretation: for some rows at a time where it would hold more than `FAR` numbers for all of them."""
    c, window = step.cascade, _rows(step.cascade, step)
    given = Given.of(c, *binding.arguments(c, (), known))
    if window is None or torch.compiler.is_compiling():
        return interpret(c, given.inputs, given.sizes, dtype)
    rows, axis = extent_of(c, window.rank, given.sizes), _axis(step, window)
    most = max(math.prod(extent_of(c, r, given.sizes) for r in (*c.over, *x.ranks, *x.over)) for x in c.einsums)
    parts: list[dict[str, torch.Tensor]] = []
    for _, _, mine in _cut(window, known, rows, max(1, FAR * rows // max(1, most))):
        arguments = {t.name: mine[t.name] for t in window.cascade.inputs}
        part = Given.of(window.cascade, *binding.arguments(window.cascade, (), arguments))
        parts.append(interpret(window.cascade, part.inputs, part.sizes, dtype))
    return {n: torch.cat([x[n] for x in parts], axis) for n in c.outs}


def _rows(c: Cascade, step: Scores) -> windowing.Window | None:
    """Some rows of a cascade that scores; None where no rank of the scores has rows that are independent and that some input tells the
    number of."""
    body = c.einsums
    ranks = {x.target: x.ranks for x in body}
    reduced = {r for x in body for r in x.over}
    for rank in ranks.get(step.value, ())[: len(step.ranks) - step.ranked]:
        if (
            not c.rank(rank).is_sequence
            or rank in reduced
            or any(elsewhere(e, rank, ranks) for x in body for e in x.expressions)
        ):
            continue
        found = windowing.run(c, rank)
        if found.cut:
            return found
    return None


def _axis(step: Scores, window: windowing.Window) -> int:
    """The axis of the rows in the scores."""
    return len(step.cascade.over) + step.ranks.index(window.rank)


def _cut(
    window: windowing.Window, known: Mapping[str, torch.Tensor | Scalar], rows: int, step: int
) -> Iterator[tuple[int, int, dict[str, torch.Tensor | Scalar]]]:
    """The arguments of every window: where it begins, how many rows it has, and what it reads."""
    for lo in range(0, rows, step):
        n = min(step, rows - lo)
        views = {name: _tensor(known[name]).narrow(axis, lo, n) for name, axis in window.cut}
        yield lo, n, {**known, **views, window.at: lo}


def _outputs(attention: Attention, known: Mapping[str, torch.Tensor | Scalar]) -> dict[str, torch.Tensor]:
    outs = attention(**{t.name: widened(known[t.name]) for t in attention.cascade.inputs})
    return dict(zip(attention.cascade.outs, outs if isinstance(outs, tuple) else (outs,), strict=True))


def widened(x: torch.Tensor | Scalar) -> torch.Tensor | Scalar:
    """The same; a float of fewer than 32 bits as one of 32."""
    return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype.itemsize < 4 else x


def _tensor(x: torch.Tensor | Scalar) -> torch.Tensor:
    assert isinstance(x, torch.Tensor), "what has rows is a tensor"
    return x
