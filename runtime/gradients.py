"""How a program runs its backward: one kernel after the other, or two as one, and what they give added up at the inputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from einfuse.codegen import KernelPlan, Storage, lower
from einfuse.ir import Cascade
from einfuse.ir import index as coordinate
from einfuse.ir.backward import Gradient, adjoint
from einfuse.ir.nodes import Einsum, Fold
from einfuse.ir.passes import tail
from einfuse.ir.text import show
from einfuse.runtime import cache, derived
from einfuse.runtime.backends import Backend
from einfuse.runtime.binding import STORAGE, extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.kernels import kernel_key, static_sizes, tilings
from einfuse.runtime.launch import Built, Launch
from einfuse.runtime.pairs import Pairs
from einfuse.runtime.recent import Recent
from einfuse.runtime.scatter import accumulate, contracted

if TYPE_CHECKING:
    from einfuse.runtime.program import Program

Step = tuple[Cascade, tuple[Gradient, ...]]
"""A cascade of a backward, and the gradients it gives."""


@dataclass(slots=True)
class Gradients:
    """The backward of one program; ``built`` are kernels of two steps (None: these two make none), ``dense`` what a step gives by pairs,
    ``cuts`` its cascade behind its sums (`ir.passes.tail`)."""

    program: Program
    built: Recent[tuple[object, ...], Built | None] = field(default_factory=Recent)
    dense: dict[tuple[object, ...], Pairs | None] = field(default_factory=dict)
    cuts: dict[tuple[object, ...], tuple[Cascade, Cascade] | None] = field(default_factory=dict)

    def run(
        self,
        given: Given,
        saved: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
        backend: Backend,
        wanted: tuple[str, ...],
    ) -> dict[str, torch.Tensor]:
        """The gradient of every tensor in ``wanted``, in its own dtype."""
        known = given.more({**saved, **{adjoint(n): g for n, g in gradients.items()}})
        total: dict[str, torch.Tensor] = {}
        steps = self.program.backward_of(wanted).cascades
        while steps:
            outs = self._merged(steps[0], steps[1], known, backend) if len(steps) > 1 else None
            done, steps = (steps[:1], steps[1:]) if outs is None else (steps[:2], steps[2:])
            if outs is None:
                outs = self._one(done[0], known, given, backend, total)
            known = known.more(outs)
            for cascade, part in ((c, p) for c, parts in done for p in parts if p.statement in outs):
                accumulate(total, cascade, *contracted(part, known.tensors), given)
        asked = {n: given.tensors[n] for n in wanted}
        return _apart({n: total[n].to(x.dtype) if n in total else torch.zeros_like(x) for n, x in asked.items()})

    def _one(
        self, step: Step, known: Given, given: Given, backend: Backend, total: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The outputs of a step on its own, but for what it gives by pairs: that is added to ``total``."""
        pairs = self._pairs(step)
        outs = _allocate(step, known, pairs.parts if pairs else ())
        mine = known.read_by(step[0]).more(outs)

        def launch(c: Cascade, x: Given) -> None:
            self.program.ready(c, x, backend)(x.tensors)

        if pairs:
            pairs.by_windows(total, mine, given, launch)
        elif any(x.numel() for x in outs.values()):
            launch(step[0], mine)
        return outs

    def _pairs(self, step: Step) -> Pairs | None:
        """What the cascade gives out pair by pair, but for the gradient of an input that has an entry for every such pair itself."""
        cascade, parts = step
        key = (cascade.name, cascade.outs)
        if key not in self.dense:
            dims = {x.target: (*cascade.over, *x.ranks) for x in cascade.body if isinstance(x, Einsum)}
            whole = {p.statement for p in parts if p.index == tuple(map(coordinate, dims[p.statement])) and _only(p, parts)}
            self.dense[key] = Pairs.of(cascade, parts, whole)
        return self.dense[key]

    # -- two steps as one kernel -------------------------------------------------------------------------------------------------

    def _merged(self, rows: Step, columns: Step, known: Given, backend: Backend) -> dict[str, torch.Tensor] | None:
        """The outputs of two steps by one kernel, or by one and what is left to do with the sums of the first; None where neither can be."""
        if not backend.merges(sys.maxsize) or any(t.name in rows[0].outs for t in columns[0].inputs):
            return None
        outs = self._two(rows, columns, known, backend)
        cut = self._cut(rows[0]) if outs is None and self._pairs(rows) is None else None
        if cut is None:
            return outs
        sums = self._two((cut[0], ()), columns, known, backend)
        if sums is None:
            return None
        rest = _allocate((cut[1], rows[1]), known)
        mine = known.more(sums).read_by(cut[1]).more(rest)
        self.program.ready(cut[1], mine, backend)(mine.tensors)
        return sums | rest

    def _cut(self, cascade: Cascade) -> tuple[Cascade, Cascade] | None:
        key = (cascade.name, cascade.outs)
        if key not in self.cuts:
            self.cuts[key] = tail.run(cascade)
        return self.cuts[key]

    def _two(self, rows: Step, columns: Step, known: Given, backend: Backend) -> dict[str, torch.Tensor] | None:
        """The outputs of two steps by one kernel (those of the first are added to, from zero); None where there is none for both."""
        first, second = rows[0], columns[0]
        if any(self._pairs(step) for step in (rows, columns)):
            return None
        found = self._walked(first, second, known, backend)
        if found is None:
            return None
        (a, b), known = found
        if not backend.merges(math.prod(extent_of(a, r, known.sizes) for r in a.over)):
            return None
        mine = known.read_by(a, b)
        storage = {n: STORAGE[x.dtype] for n, x in mine.tensors.items()}
        static, other = static_sizes(a, mine.sizes), static_sizes(b, mine.sizes)
        small = self.program.variant(b, storage, other, mine.numbers, mine.sizes, backend)[1].small
        key = (a.name, a.outs, a.ranks, a.inputs, small, *kernel_key(b, storage, static | other, backend))
        if self.built.get(key, self) is None:
            return None  # it was found that they make none
        outs = _allocate(rows, known, added=True) | _allocate(columns, known)
        if not all(x.numel() for x in outs.values()):
            return None
        storage |= {n: STORAGE[x.dtype] for n, x in outs.items()}
        built = self.built.made(key, lambda: self._build(a, b, storage, static | other, backend, dict(small)))
        if built is None:
            return None
        Launch(built, mine.numbers, mine.sizes)({**mine.tensors, **outs})
        return outs

    def _walked(
        self, first: Cascade, second: Cascade, known: Given, backend: Backend
    ) -> tuple[tuple[Cascade, Cascade], Given] | None:
        """Both by tiles, or both by the lists of the first; None where one walks otherwise than the other."""
        chosen = [self.program.walked(c, known, backend) for c in (first, second)]
        if not any(chosen):
            return (first, second), known
        if chosen[0] is None or chosen[1] is None:
            return None
        turned = self.program.walks.over_columns(chosen[0], first, second)
        return None if turned is None else ((chosen[0].cascade, turned.cascade), known.more(turned.tables, turned.sizes))

    def _build(
        self,
        first: Cascade,
        second: Cascade,
        storage: Mapping[str, Storage],
        static: dict[str, int],
        backend: Backend,
        small: Mapping[str, int],
    ) -> Built | None:
        strict = self.program.strict
        block, step = tilings(second, storage, static, backend, True)[0]
        stored, sizes = sorted(storage.items()), (sorted(static.items()), sorted(small.items()))
        name = cache.key("pair", show(first), show(second), stored, sizes, backend.name, block, step, strict)

        def make() -> tuple[Cascade, KernelPlan, str] | None:
            scheduled = [derived.scheduled(c, block, step, strict) for c in (first, second)]
            masks = [[x.mask for x in c.body if isinstance(x, Fold)] for c in scheduled]
            if masks[0] != masks[1]:
                return None  # they do not walk the same pairs
            own = [{n: storage[n] for n in ({t.name for t in c.inputs} | {*c.outs}) & storage.keys()} for c in (first, second)]
            plans = (lower(c, kinds, static) for c, kinds in zip(scheduled, own, strict=True))
            rows, columns = (backend.prepared(p, small) for p in plans)
            plan = backend.merge(rows, columns)
            return (scheduled[1], plan, backend.emit(plan)) if plan else None

        made = cache.remembered("plan", name, make)
        return Built(*made, backend.build(made[1], made[2], cache.folder() / backend.name)) if made else None


def _allocate(step: Step, known: Given, apart: Collection[str] = (), added: bool = False) -> dict[str, torch.Tensor]:
    """Outputs of a backward kernel: a gradient that is already whole in its input's dtype, partial sums in accumulation precision.

    ``added``: all in accumulation precision and zero. Without those that are kept ``apart``.
    """
    cascade, parts = step
    ranks = {x.target: x.ranks for x in cascade.body if isinstance(x, Einsum)}
    sequence = {r.name for r in cascade.ranks if r.is_sequence}
    wide = torch.float64 if any(x.dtype == torch.float64 for x in known.tensors.values()) else torch.float32
    out = {}
    for name in cascade.outs:
        if name in apart:
            continue
        shape = [extent_of(cascade, r, known.sizes) for r in (*cascade.over, *ranks[name])]
        mine = [p for p in parts if name in p.statements]
        alone = len(mine) == 1 and mine[0].times is None and _only(mine[0], parts)
        whole = alone and list(known.tensors[mine[0].input].shape) == shape and not added
        pair = len({*ranks[name]} & sequence) > 1
        make = torch.zeros if pair or added else torch.empty
        out[name] = make(shape, dtype=known.tensors[mine[0].input].dtype if whole else wide, device=known.device)
    return out


def _only(part: Gradient, parts: Sequence[Gradient]) -> bool:
    """Is this the only part of its input's gradient?"""
    return sum(p.input == part.input for p in parts) == 1


def _apart(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tensor for each: the terms of a sum have one gradient, and an operator must not give out the same memory twice."""
    out: dict[str, torch.Tensor] = {}
    held: set[int] = set()
    for name, x in found.items():
        out[name] = x.clone() if x.data_ptr() in held and x.numel() else x
        held.add(x.data_ptr())
    return out
