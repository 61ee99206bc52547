"""Runs the choices of an attention (`ir.passes.choose`): lists of coordinates, and the tables that the kernels of the rest read.

What is ranked is computed in float32 or wider whatever the storage of the tensors, by the kernels of an attention of its own, and no gradient
goes through it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade, Scalar, SpecError
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.passes.choose import Chosen, Scores, Step, Table
from einfuse.ir.ranking import best, members, ordinary
from einfuse.ir.reducers import MISSING
from einfuse.runtime import backends, binding, cache
from einfuse.runtime.given import Given
from einfuse.runtime.program import Mode
from einfuse.runtime.recent import Recent
from einfuse.runtime.scoring import Windows, interpreted, widened

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention, Output

REMEMBERED = 8
"""Sizes of calls for which it is kept which points exist."""
Known = dict[str, "torch.Tensor | Scalar"]
Best = Callable[["torch.Tensor", "torch.Tensor | None", int], "torch.Tensor"]
"""A choice, as `ir.ranking.best`."""


@dataclass(eq=False)
class Selection:
    """The steps of a cascade that chooses. ``scorers`` are the attentions that compute what is ranked, in order of the steps."""

    whole: Cascade
    chosen: Chosen
    scorers: Mapping[str, Attention | None]
    traced: Mapping[str, Attention | None]
    """The same for a graph that is captured: they give out which points exist as well, where the others leave that to the sizes of a call."""
    rest: Attention
    listed: Attention | None
    """The rest that takes lists in place of tables; None where it cannot."""
    interpreted: set[str] = field(default_factory=set)
    """The lists whose scores no kernel computes: they are interpreted."""
    windows: Recent[str, Windows | None] = field(default_factory=Recent)
    """How the scores of a list are computed for some rows at a time."""
    existing: Recent[tuple[object, ...], torch.Tensor] = field(default_factory=lambda: Recent(REMEMBERED))
    """Which points of a list's scores exist, where the sizes and numbers of a call tell."""

    @staticmethod
    def of(attention: Attention, chosen: Chosen) -> Selection:
        def made(c: Cascade, wide: bool) -> Attention:
            return type(attention)(c, attention.backend, attention.strict, wide=wide, form="quadratic", inner=True)

        scorers: dict[str, Attention | None] = {}
        traced: dict[str, Attention | None] = {}
        for x in chosen.steps:
            if isinstance(x, Scores):
                scorers[x.target], traced[x.target] = _scorers(x, made)
        listed = None if chosen.listed is None else made(chosen.listed, attention.wide)
        return Selection(attention.cascade, chosen, scorers, traced, made(chosen.rest, attention.wide), listed)

    def __call__(self, known: Known) -> Known:
        """The arguments of a call with lists and tables beside them, by name."""
        return self._after(self.chosen.steps, known)

    def steps(self, known: Known) -> Iterator[tuple[Step, Known]]:
        """Every step in order, with the arguments of the call and all that was made up to it."""
        yield from self._steps(self.chosen.steps, known)

    def _steps(self, steps: Sequence[Step], known: Known) -> Iterator[tuple[Step, Known]]:
        mine = {t.name: known[t.name] for t in self.whole.inputs}
        sizes = Given.of(self.whole, *binding.arguments(self.whole, (), mine)).sizes
        for step in steps:
            with torch.no_grad():
                if isinstance(step, Table):
                    known = {**known, step.name: _table(step, known, sizes)}
                else:
                    known = {**known, **self._list(step, known, sizes)}
            yield step, known

    def reader(self, known: Known) -> tuple[Attention, Known]:
        """What reads the lists in a call, and its arguments: lists drive its loops where that pays, else it reads tables."""
        return self._reader(known)[:2]

    def said(self, known: Known) -> list[str]:
        """How a call chooses and how it reads what was chosen, with the reason, in words."""
        out = []
        for x in self.chosen.steps:
            if isinstance(x, Scores):
                kernels = self.scorers[x.target] is not None and x.target not in self.interpreted
                how = "kernels" if kernels else "interpretation of whole numbers" if x.whole else "interpretation"
                out.append(f"{x.target}: what is ranked is computed by {how}")
        if not any(t.name in self._tables for t in self.rest.cascade.inputs):
            return [*out, "the entries of lists are read one by one"]
        if self.listed is None:
            return [*out, "tables of truth values: lists are data without a bound"]
        mode = _mode(self.listed, self._by_lists(self(known)))
        return [*out, f"{'lists drive the loops' if mode.lists else 'tables of truth values'}: {mode.why}"]

    @property
    def _tables(self) -> dict[str, Table]:
        return {x.name: x for x in self.chosen.steps if isinstance(x, Table)}

    def _by_lists(self, known: Known) -> Known:
        """The arguments of the rest that takes lists."""
        assert self.listed is not None, "it was asked"
        names, tables = [t.name for t in self.listed.cascade.inputs], self._tables
        return {n: known[tables[n].source if n in tables else n] for n in names}

    def _reader(self, known: Known) -> tuple[Attention, Known, Known]:
        """And all that was made for it."""
        scored = {t.name for x in self.chosen.steps if isinstance(x, Scores) for t in x.cascade.inputs}
        left = [x for x in self._tables.values() if x.name not in scored]  # what only the rest reads
        known = self._after([x for x in self.chosen.steps if x not in left], known)
        if self.listed is not None and not torch.compiler.is_compiling():  # what pays depends on sizes
            mine = self._by_lists(known)
            if _mode(self.listed, mine).lists:
                return self.listed, mine, known
        known = self._after(left, known)
        return self.rest, self._of_the_rest(known), known

    def _after(self, steps: Sequence[Step], known: Known) -> Known:
        return functools.reduce(lambda _, step: step[1], self._steps(steps, known), known)

    def read_by_the_rest(self, known: Known) -> Known:
        """The arguments of the rest for those of a call."""
        return self._of_the_rest(self(known))

    def _of_the_rest(self, known: Known) -> Known:
        return {t.name: known[t.name] for t in self.rest.cascade.inputs}

    def run(self, known: Known) -> Output:
        """The outputs of a call."""
        reader, mine, known = self._reader(known)
        return self._outputs(reader(**mine), known)

    def _outputs(self, found: Output, known: Known) -> Output:
        """What the rest has found and, among it, the lists that are outputs: -1 in a slot that does not exist."""
        values = iter(found if isinstance(found, tuple) else (found,))
        mine = set(self.rest.cascade.outs)
        outs = tuple(next(values) if n in mine else torch.as_tensor(known[n]).clamp_min(-1) for n in self.whole.outs)
        return outs if len(outs) > 1 else outs[0]

    def jvp(
        self, tensors: dict[str, torch.Tensor], numbers: dict[str, Scalar], tangents: Mapping[str, torch.Tensor]
    ) -> tuple[Output, Output]:
        """See `Attention.jvp`: lists do not move, so that only the rest has a derivative."""
        known = self({**tensors, **numbers})
        mine = self._of_the_rest(known)
        moving = {n: x for n, x in tangents.items() if n in mine}
        if moving:
            found, moved = self.rest.jvp(**mine, tangents=moving)
        else:
            found = self.rest(**mine)
            moved = tuple(map(torch.zeros_like, found)) if isinstance(found, tuple) else torch.zeros_like(found)
        still = known | {n: torch.zeros_like(torch.as_tensor(known[n])) for n in self.whole.outs if n in known}
        return self._outputs(found, known), self._outputs(moved, still)

    def _list(self, step: Scores, known: Known, sizes: Mapping[str, int]) -> Known:
        """The list of a step, and its scores where later steps read them."""
        slots = 1 if step.slots is None else int(binding.evaluate(step.slots, sizes))
        found = None if step.kept else self._by_windows(step, known, sizes, slots)
        if found is not None:
            return {step.target: found}
        scores = self.scores(step, known)
        kept = {step.kept: scores[step.value]} if step.kept else {}
        return {step.target: listed(step, scores, slots, self._best), **kept}

    def _by_windows(self, step: Scores, known: Known, sizes: Mapping[str, int], slots: int) -> torch.Tensor | None:
        """The list made for some rows after the other; None where their scores are few, or none can do without others."""
        scorer = self.scorers[step.target]
        if scorer is None or step.target in self.interpreted or torch.compiler.is_compiling():
            return None
        windows = self.windows.made(step.target, lambda: Windows.of(step, scorer))
        mine = {t.name: known[t.name] for t in step.cascade.inputs}
        tensors = [x for x in mine.values() if isinstance(x, torch.Tensor)]
        if windows is None or not all(map(ordinary, tensors)):
            return None
        rows, few = windows.rows(step, sizes, tensors[0].device.type)
        if rows <= 2 * few:
            return None
        exists = {} if step.where is None else self._existing(step, mine)
        axis, out = windows.axis, None
        try:
            for lo, n, found in windows(mine, rows, few):
                here = {k: x.narrow(axis, lo, n) if x.shape[axis] > 1 else x for k, x in exists.items()}
                part = listed(step, found | here, slots, self._best)
                if out is None:
                    out = part.new_empty((*part.shape[:axis], rows, *part.shape[axis + 1 :]))
                out.narrow(axis, lo, n).copy_(part)  # were parts kept, the next scores would lie in memory that is new
        except SpecError:
            return None
        return out

    def _best(self, values: torch.Tensor, exists: torch.Tensor | None, slots: int) -> torch.Tensor:
        if not ordinary(values):
            return best(values, exists, slots)
        backend = backends.choose(values.device, self.rest.backend)
        return backend.best(values, exists, slots, cache.folder() / backend.name)

    def ranked(self, step: Scores, known: Mapping[str, torch.Tensor | Scalar]) -> Known:
        """The arguments of what scores: floats of at least 32 bits."""
        return {t.name: widened(known[t.name]) for t in step.cascade.inputs}

    def scores(self, step: Scores, known: Mapping[str, torch.Tensor | Scalar]) -> dict[str, torch.Tensor]:
        """The values that a step ranks and where they exist, by a kernel, or by interpretation where there is none."""
        mine = self.ranked(step, known)
        capturing = torch.compiler.is_compiling()  # sizes may be symbols
        scorer = (self.traced if capturing else self.scorers)[step.target]
        if scorer is not None and step.target not in self.interpreted:
            try:
                outs = scorer(**{t.name: mine[t.name] for t in scorer.cascade.inputs})
            except SpecError:
                self.interpreted.add(step.target)
            else:
                found = dict(zip(scorer.cascade.outs, outs if isinstance(outs, tuple) else (outs,), strict=True))
                return found if step.where is None or capturing else found | self._existing(step, mine)
        return interpreted(step, mine, _dtype(mine))

    def _existing(self, step: Scores, mine: Known) -> dict[str, torch.Tensor]:
        """Where the points exist that coordinates tell: truth values that broadcast against the scores."""
        c, where = step.cascade, step.where
        assert where is not None, "coordinates tell"
        assert step.exists is not None, "some points may not exist"
        given = Given.of(c, *binding.arguments(c, (), mine))

        def made() -> torch.Tensor:
            ranks = next(x.ranks for x in c.einsums if x.target == step.value)
            (found,) = evaluate_indices(c, (where,), (*c.over, *ranks), dict(given.numbers), given.sizes, None, given.device)
            return found.bool()

        return {step.exists: self.existing.made((step.target, given.device, given.key), made)}


def _scorers(step: Scores, made: Callable[[Cascade, bool], Attention]) -> tuple[Attention | None, Attention | None]:
    """What computes the scores of a step, and the same for a graph that is captured; None where no kernels do."""
    for way in step.ways:
        try:
            scorer = made(way.computed, False)
        except SpecError:
            continue
        return scorer, scorer if way.where is None else made(way.cascade, False)
    return None, None


def scored(step: Scores, found: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a step ranks, along one last axis, and where it exists (None: everywhere)."""
    value, exists = found[step.value], None if step.exists is None else found[step.exists]
    if exists is not None and exists.dtype != torch.bool:
        exists = exists > 0.5
    if not step.ranked:
        return value, exists
    first = value.ndim - step.ranked
    if exists is not None:
        exists = exists.expand(*exists.shape[:first], *value.shape[first:]).flatten(first)
    return value.flatten(first), exists


def listed(step: Scores, found: Mapping[str, torch.Tensor], slots: int, choose: Best = best) -> torch.Tensor:
    """The list that a step makes of its scores: int64, with one axis for the slots where it has slots."""
    value, exists = scored(step, found)
    if not step.ranked:
        entries = value.long()
        return entries if exists is None else torch.where(exists, entries, MISSING)
    at = choose(value, exists, slots)
    return at if step.slots is not None else at[..., 0]


def _mode(listed: Attention, mine: Known) -> Mode:
    return listed.program.mode(Given.of(listed.cascade, *binding.arguments(listed.cascade, (), mine)))


def _table(step: Table, known: Known, sizes: Mapping[str, int]) -> torch.Tensor:
    """Truth values [*prefix, span]: which numbers the entries of a list are. Entries outside are none of them."""
    entries = known[step.source]
    assert isinstance(entries, torch.Tensor), "a list is a tensor"
    if isinstance(step.span, str):
        span = int(entries.max()) + 1 if entries.numel() else 1
    else:
        span = int(binding.evaluate(step.span, sizes))
    return members(entries, span)


def _dtype(mine: Mapping[str, torch.Tensor | Scalar]) -> torch.dtype:
    """The precision of an interpretation: that of the widest float."""
    wide = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in mine.values())
    return torch.float64 if wide else torch.float32
