"""Runs the choices of an attention (`ir.passes.choose`): lists of coordinates, and the tables that the kernels of the rest read.

What is ranked is computed in float32 or wider whatever the storage of the tensors, by the kernels of an attention of its own, and no gradient
goes through it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade, Scalar, SpecError, interpret
from einfuse.ir.expr import MISSING
from einfuse.ir.passes.choose import Chosen, Scores, Step, Table
from einfuse.ir.ranking import best
from einfuse.runtime import binding
from einfuse.runtime.given import Given

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention, Output

Known = dict[str, "torch.Tensor | Scalar"]


@dataclass(eq=False)
class Selection:
    """The steps of a cascade that chooses. ``scorers`` are the attentions that compute what is ranked, in order of the steps."""

    whole: Cascade
    chosen: Chosen
    scorers: Mapping[str, Attention | None]
    rest: Attention
    interpreted: set[str] = field(default_factory=set)
    """The lists whose scores no kernel computes: they are interpreted."""

    @staticmethod
    def of(attention: Attention, chosen: Chosen) -> Selection:
        def made(c: Scores) -> Attention | None:
            if c.whole:
                return None
            try:
                return type(attention)(c.cascade, attention.backend, attention.strict, form="quadratic", inner=True)
            except SpecError:
                return None

        scorers = {x.target: made(x) for x in chosen.steps if isinstance(x, Scores)}
        rest = type(attention)(
            chosen.rest, attention.backend, attention.strict, wide=attention.wide, form="quadratic", inner=True
        )
        return Selection(attention.cascade, chosen, scorers, rest)

    def __call__(self, known: Known) -> Known:
        """The arguments of a call with lists and tables beside them, by name."""
        return functools.reduce(lambda _, step: step[1], self.steps(known), known)

    def steps(self, known: Known) -> Iterator[tuple[Step, Known]]:
        """Every step in order, with the arguments of the call and all that was made up to it."""
        mine = {t.name: known[t.name] for t in self.whole.inputs}
        sizes = Given.of(self.whole, *binding.arguments(self.whole, (), mine)).sizes
        for step in self.chosen.steps:
            with torch.no_grad():
                name, made = (
                    (step.name, _table(step, known, sizes))
                    if isinstance(step, Table)
                    else (step.target, self._list(step, known, sizes))
                )
            known = {**known, name: made}
            yield step, known

    def read_by_the_rest(self, known: Known) -> Known:
        """The arguments of the rest for those of a call."""
        known = self(known)
        return {t.name: known[t.name] for t in self.rest.cascade.inputs}

    def jvp(
        self, tensors: dict[str, torch.Tensor], numbers: dict[str, Scalar], tangents: Mapping[str, torch.Tensor]
    ) -> tuple[Output, Output]:
        """See `Attention.jvp`: lists do not move, so that only the rest has a derivative."""
        mine = self.read_by_the_rest({**tensors, **numbers})
        moving = {n: x for n, x in tangents.items() if n in mine}
        if moving:
            return self.rest.jvp(**mine, tangents=moving)
        found = self.rest(**mine)
        return found, tuple(map(torch.zeros_like, found)) if isinstance(found, tuple) else torch.zeros_like(found)

    def _list(self, step: Scores, known: Known, sizes: Mapping[str, int]) -> torch.Tensor:
        slots = 1 if step.slots is None else int(binding.evaluate(step.slots, sizes))
        return listed(step, self.scores(step, known), slots)

    def ranked(self, step: Scores, known: Mapping[str, torch.Tensor | Scalar]) -> Known:
        """The arguments of what scores: floats of at least 32 bits."""
        return {t.name: _wide(known[t.name]) for t in step.cascade.inputs}

    def scores(self, step: Scores, known: Mapping[str, torch.Tensor | Scalar]) -> dict[str, torch.Tensor]:
        """The values that a step ranks and where they exist, by a kernel, or by interpretation where there is none."""
        mine = self.ranked(step, known)
        scorer = self.scorers[step.target]
        if scorer is not None and step.target not in self.interpreted:
            try:
                outs = scorer(**mine)
                return dict(zip(step.cascade.outs, outs if isinstance(outs, tuple) else (outs,), strict=True))
            except SpecError:
                self.interpreted.add(step.target)
        given = Given.of(step.cascade, *binding.arguments(step.cascade, (), mine))
        return interpret(step.cascade, given.inputs, given.sizes, _dtype(mine))


def scored(step: Scores, found: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a step ranks, along one last axis, and where it exists (None: everywhere)."""
    value, exists = found[step.value], None if step.exists is None else found[step.exists] > 0.5
    if not step.ranked:
        return value, exists
    first = value.ndim - step.ranked
    return value.flatten(first), None if exists is None else exists.flatten(first)


def listed(step: Scores, found: Mapping[str, torch.Tensor], slots: int) -> torch.Tensor:
    """The list that a step makes of its scores: int64, with one axis for the slots where it has slots."""
    value, exists = scored(step, found)
    if not step.ranked:
        entries = value.round().long()
        return entries if exists is None else torch.where(exists, entries, MISSING)
    at = best(value, exists, slots)
    return at if step.slots is not None else at[..., 0]


def _table(step: Table, known: Known, sizes: Mapping[str, int]) -> torch.Tensor:
    """Truth values [*prefix, span]: which numbers the entries of a list are. Entries outside are none of them."""
    entries = known[step.source]
    assert isinstance(entries, torch.Tensor), "a list is a tensor"
    if isinstance(step.span, str):
        span = int(entries.max()) + 1 if entries.numel() else 1
    else:
        span = int(binding.evaluate(step.span, sizes))
    inside = torch.where((entries >= 0) & (entries < span), entries, span).long()  # others go to a place that is cut off
    has = torch.zeros((*entries.shape[:-1], span + 1), dtype=torch.bool, device=entries.device)
    return has.scatter(-1, inside, True)[..., :span].contiguous()


def _wide(x: torch.Tensor | Scalar) -> torch.Tensor | Scalar:
    return x.float() if isinstance(x, torch.Tensor) and x.dtype in (torch.bfloat16, torch.float16) else x


def _dtype(mine: Mapping[str, torch.Tensor | Scalar]) -> torch.dtype:
    """The precision of an interpretation: that of the widest float."""
    wide = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in mine.values())
    return torch.float64 if wide else torch.float32
