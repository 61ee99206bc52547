"""How a program runs its backward: one kernel after the other, or two as one, and what they give added up at the inputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade
from einfuse.ir import index as coordinate
from einfuse.ir.backward import Gradient, Step, adjoint
from einfuse.ir.nodes import Einsum
from einfuse.ir.passes import tail
from einfuse.runtime.backends import Backend
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.launch import Built, Launch, Recorded, recorder
from einfuse.runtime.outputs import gradient, is_only, materialised, of_backward
from einfuse.runtime.pairs import Pairs
from einfuse.runtime.recent import Recent
from einfuse.runtime.scatter import accumulate, contracted
from einfuse.runtime.specialise import Fused

if TYPE_CHECKING:
    from einfuse.runtime.program import Program
    from einfuse.runtime.walks import Chosen


@dataclass(slots=True)
class Gradients:
    """The backward of one program. ``built`` holds the kernels that do two steps (None: these two have no such kernel), ``dense`` the
    gradients that a step gives pair by pair, ``cuts`` a step cut behind its sums (`ir.passes.tail`)."""

    program: Program
    built: Recent[tuple[Fused, tuple[tuple[str, int], ...]], Built | None] = field(default_factory=Recent)
    dense: dict[tuple[str, tuple[Gradient, ...]], Pairs | None] = field(default_factory=dict)
    cuts: dict[str, tuple[Cascade, Cascade] | None] = field(default_factory=dict)

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
        steps = self.program.steps(wanted, backend.row_values)
        while steps:
            outs = self._merged(steps[0], steps[1], known, backend) if len(steps) > 1 else None
            done, steps = (steps[:1], steps[1:]) if outs is None else (steps[:2], steps[2:])
            if outs is None:
                outs = self._one(done[0], known, given, backend, total)
            known = known.more(outs)
            for cascade, part in ((c, p) for c, parts in done for p in parts if p.statement in outs):
                accumulate(total, cascade, *contracted(part, known.tensors), given)
        asked = {n: given.tensors[n] for n in wanted}
        return _apart({n: gradient(total.get(n), x) for n, x in asked.items()})

    def _one(
        self, step: Step, known: Given, given: Given, backend: Backend, total: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The outputs of a step on its own, but for what it gives by pairs: that is added to ``total``."""
        pairs = self._pairs(step)
        outs = materialised(of_backward(*step, known, pairs.parts if pairs else ()), known.device)
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
        key = (cascade.digest, parts)
        if key not in self.dense:
            dims = {x.target: (*cascade.over, *x.ranks) for x in cascade.body if isinstance(x, Einsum)}
            whole = {p.statement for p in parts if p.index == tuple(map(coordinate, dims[p.statement])) and is_only(p, parts)}
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
        rest = materialised(of_backward(cut[1], rows[1], known), known.device)
        mine = known.more(sums).read_by(cut[1]).more(rest)
        self.program.ready(cut[1], mine, backend)(mine.tensors)
        return sums | rest

    def _cut(self, cascade: Cascade) -> tuple[Cascade, Cascade] | None:
        if cascade.digest not in self.cuts:
            self.cuts[cascade.digest] = tail.run(cascade)
        return self.cuts[cascade.digest]

    def _two(self, rows: Step, columns: Step, known: Given, backend: Backend) -> dict[str, torch.Tensor] | None:
        """The outputs of two steps by one kernel (it adds to those of the first, from zero); None where there is no kernel of both."""
        if any(self._pairs(step) for step in (rows, columns)):
            return None
        outputs = of_backward(*rows, known, added=True) | of_backward(*columns, known)
        if not all(math.prod(x.shape) for x in outputs.values()):
            return None
        first, second = (self.program.choose(c, known, backend, outputs).lists for c, _ in (rows, columns))
        found = self._walked(first, second, rows[0], columns[0], known)
        if found is None:
            return None
        both, known = found
        if not backend.merges(math.prod(extent_of(both[0], r, known.sizes) for r in both[0].over)):
            return None
        kernels = Fused(*(self.program.specialised(c, known, backend, outputs) for c in both))
        small = kernels.columns.choose(known.sizes, known.numbers).small

        run = self._run_of(kernels, small)
        if run is None:
            return None
        outs = materialised(outputs, known.device)
        run(known.read_by(*both).more(outs))
        return outs

    def _run_of(self, kernels: Fused, small: tuple[tuple[str, int], ...]) -> Callable[[Given], None] | None:
        """What launches the kernel of two steps, or records it where launches are recorded; None where these two have none."""
        if (note := recorder()) is not None:
            printed = kernels.printed(small)
            return (lambda mine: note(Recorded(printed, mine))) if printed else None

        def build() -> Built | None:
            printed = kernels.printed(small)
            return Built.of(printed, kernels.columns.backend) if printed else None

        built = self.built.made((kernels, small), build)
        return (lambda mine: Launch(built, mine.numbers, mine.sizes)(mine.tensors)) if built else None

    def _walked(
        self, first: Chosen | None, second: Chosen | None, rows: Cascade, columns: Cascade, known: Given
    ) -> tuple[tuple[Cascade, Cascade], Given] | None:
        """Both by tiles, or both by the lists of the first; None where one walks otherwise than the other."""
        if first is None and second is None:
            return (rows, columns), known
        turned = self.program.walks.over_columns(first, rows, columns) if first and second else None
        return ((first.cascade, turned.cascade), known.more(turned.tables, turned.sizes)) if first and turned else None


def _apart(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tensor for each: the terms of a sum have one gradient, and an operator must not give out the same memory twice."""
    out: dict[str, torch.Tensor] = {}
    held: set[int] = set()
    for name, x in found.items():
        out[name] = x.clone() if x.data_ptr() in held and x.numel() else x
        held.add(x.data_ptr())
    return out
