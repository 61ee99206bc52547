"""The graph of a program's backward: one kernel after the other, or two as one, and what they give added up at the inputs."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade
from einfuse.ir import index as coordinate
from einfuse.ir.passes import tail
from einfuse.ir.passes.backward import Gradient, Step
from einfuse.runtime.backends import Backend
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Host, Kernel, Node, Tensors, room
from einfuse.runtime.launch import Built, Launch
from einfuse.runtime.outputs import Output, described, gradient, is_only, lies_as, of_backward
from einfuse.runtime.pairs import Pairs
from einfuse.runtime.recent import Recent
from einfuse.runtime.scatter import accumulate, adding, axes, contracted, total
from einfuse.runtime.specialise import Fused, Printed

if TYPE_CHECKING:
    from einfuse.runtime.program import Program
    from einfuse.runtime.walks import Chosen

Both = tuple[Fused, tuple[tuple[str, int], ...]]
"""Two steps as one, and the sizes for which they are made."""
Part = tuple[Sequence[Node], Mapping[str, Output]]
"""Some nodes, and the statements that they make."""


@dataclass(slots=True)
class Gradients:
    """The backward of one program. ``printed`` and ``built`` are kernels that do two steps (None: these two have no such kernel), ``dense``
    gradients that a step gives pair by pair, ``cuts`` steps cut behind their sums (`ir.passes.tail`)."""

    program: Program
    printed: Recent[Both, Printed | None] = field(default_factory=Recent)
    built: Recent[Both, Built] = field(default_factory=Recent)
    dense: dict[tuple[str, tuple[Gradient, ...]], Pairs | None] = field(default_factory=dict)
    cuts: dict[str, tuple[Cascade, Cascade] | None] = field(default_factory=dict)

    def graph(self, known: Given, backend: Backend, wanted: tuple[str, ...]) -> Graph:
        """What a backward runs on the tensors ``known``: of the call, saved by the forward, and gradients of the outputs.

        It gives out the gradient of every tensor in ``wanted``, in its own dtype.
        """
        return Graph(functools.partial(self._nodes, backend, wanted), known, [f"gradient of {n}" for n in wanted], same=True)

    def _nodes(self, backend: Backend, wanted: tuple[str, ...], known: Given) -> list[Node]:
        nodes: list[Node] = []
        held: dict[str, str] = {}
        """What holds the sum for an input."""
        steps = self.program.steps(wanted, backend)
        every = [p for _, ps in steps for p in ps]
        while steps:
            known = self.program.sized(steps[0][0], known)
            part = self._merged(steps[0], steps[1], known, backend) if len(steps) > 1 else None
            done, steps = (steps[:1], steps[1:]) if part is None else (steps[:2], steps[2:])
            more, outs = part or self._one(done[0], known, backend)
            nodes += more
            known = known.more(described(outs))
            parts = [(c, p) for c, ps in done for p in ps if p.statement in outs]
            whole = {p.input: p.statement for _, p in parts if _is_whole(p, every, known)}
            rest = [(c, p) for c, p in parts if p.input not in whole]
            nodes += [_added(rest, known)] if rest else []
            held |= {p.input: total(p.input) for _, ps in done for p in ps} | whole
        return [*nodes, _returned(wanted, held, known)]

    def _one(self, step: Step, known: Given, backend: Backend) -> Part:
        """A step on its own, with what it gives by pairs added up already."""
        pairs = self.pairs(step)
        outs = self.program.written(step, known, pairs.parts if pairs else ())
        if pairs:
            return pairs.nodes(known, outs, functools.partial(self.program.kernel, backend=backend)), outs
        if not any(x.elements for x in outs.values()):
            return (room(outs),), outs
        return self.program.nodes(step[0], known, backend, outs), outs

    def pairs(self, step: Step) -> Pairs | None:
        """What the cascade gives out pair by pair, but for the gradient of an input that has an entry for every such pair itself."""
        cascade, parts = step
        key = (cascade.digest, parts)
        if key not in self.dense:
            dims = {x.target: (*cascade.over, *x.ranks) for x in cascade.einsums}
            whole = {
                p.statement
                for p in parts
                if p.statement in dims and p.index == tuple(map(coordinate, dims[p.statement])) and is_only(p, parts)
            }
            self.dense[key] = Pairs.of(cascade, parts, whole) if dims else None  # a scan gives nothing by pairs
        return self.dense[key]

    # -- two steps as one kernel -------------------------------------------------------------------------------------------------

    def _merged(self, rows: Step, columns: Step, known: Given, backend: Backend) -> Part | None:
        """Two steps by one kernel, or by one and what is left to do with the sums of the first; None where neither can be."""
        if (
            not self.program.merges_steps
            or not backend.merges(sys.maxsize)
            or any(t.name in rows[0].outs for t in columns[0].inputs)
        ):
            return None
        whole = self._two(rows, columns, known, backend)
        cut = self._cut(rows[0]) if whole is None and self.pairs(rows) is None else None
        if cut is None:
            return whole
        part = self._two((cut[0], ()), columns, known, backend)
        if part is None:
            return None
        nodes, sums = part
        rest = of_backward(cut[1], rows[1], known)
        return (*nodes, self.program.kernel(cut[1], known.more(described(sums)), backend, rest)), {**sums, **rest}

    def _cut(self, cascade: Cascade) -> tuple[Cascade, Cascade] | None:
        if cascade.digest not in self.cuts:
            self.cuts[cascade.digest] = tail.run(cascade)
        return self.cuts[cascade.digest]

    def _two(self, rows: Step, columns: Step, known: Given, backend: Backend) -> Part | None:
        """Two steps by one kernel (it adds to the outputs of the first, from zero); None where there is no kernel of both."""
        if any(self.pairs(step) for step in (rows, columns)):
            return None
        outs = of_backward(*rows, known, added=True) | of_backward(*columns, known)
        if not all(x.elements for x in outs.values()):
            return None
        typed = known.more(described(outs))
        first, second = (self.program.choose(c, typed, backend).lists for c, _ in (rows, columns))
        found = self._walked(first, second, rows[0], columns[0], typed)
        if found is None:
            return None
        both, typed = found
        if not backend.merges(math.prod(extent_of(both[0], r, typed.sizes) for r in both[0].over)):
            return None
        fused = Fused(*(self.program.specialised(c, typed, backend) for c in both))
        small = fused.columns.choose(typed.sizes, typed.numbers).small
        printed = self.printed.made((fused, small), lambda: fused.printed(small))
        if printed is None:
            return None
        tables = first.tables if first else {}
        mine = typed.read_by(*both)

        def launch() -> Launch:
            built = self.built.made((fused, small), lambda: Built.of(printed, backend))
            return Launch(built)

        read = tuple(n for n in mine.tensors if n not in tables)
        return (Kernel(f"{rows[0].name} + {columns[0].name}", read, outs, mine, lambda: printed, launch, tables=tables),), outs

    def _walked(
        self, first: Chosen | None, second: Chosen | None, rows: Cascade, columns: Cascade, known: Given
    ) -> tuple[tuple[Cascade, Cascade], Given] | None:
        """Both by tiles, or both by the lists of the first; None where one walks otherwise than the other."""
        if first is None and second is None:
            return (rows, columns), known
        turned = self.program.walks.over_columns(first, rows, columns) if first and second else None
        return ((first.cascade, turned.cascade), known.more(turned.tables, turned.sizes)) if first and turned else None


def _is_whole(part: Gradient, every: Sequence[Gradient], known: Given) -> bool:
    """Whether a part has, axis by axis, all of its input's gradient, and nothing else of what it is made of."""
    at = axes(part.ranks, part.index)
    alone = part.times is None and sum(p.input == part.input or p.statement == part.statement for p in every) == 1
    straight = not at.gone and at.order == [*range(len(part.index))]
    return alone and straight and known.tensors[part.statement].shape == known.tensors[part.input].shape


def _added(parts: Sequence[tuple[Cascade, Gradient]], known: Given) -> Host:
    """Adds parts of gradients to the sums of their inputs."""

    whole = [(cascade, part, axes(part.ranks, part.index) if part.times is None else None) for cascade, part in parts]

    def add(sums: dict[str, torch.Tensor], tensors: Tensors, now: Given) -> None:
        for cascade, part, at in whole:
            accumulate(sums, cascade, *contracted(part, tensors), now, at=at)

    return adding((p for _, p in parts), (n for _, p in parts for n in p.statements), known, add)


def _returned(wanted: Sequence[str], held: Mapping[str, str], known: Given) -> Host:
    """The sums, which tensors of the graph hold, in dtype and layout of the inputs, a tensor for each.

    The terms of a sum have one gradient, and an operator must not give out the same memory twice. What a kernel wrote as an input lies is
    given out as it is.
    """
    gives = {n: f"gradient of {n}" for n in wanted}
    ready = {gives[n]: x for n, x in held.items() if x in known.tensors and lies_as(known.tensors[x], known.tensors[n])}
    rest = [n for n in wanted if gives[n] not in ready]

    def do(tensors: Tensors, call: Given) -> None:
        seen: set[int] = set()
        for n in rest:
            x = gradient(tensors.get(held.get(n, "")), tensors[n])
            tensors[gives[n]] = x.clone() if x.data_ptr() in seen and x.numel() else x
            seen.add(x.data_ptr())
        for mine, theirs in ready.items():
            tensors[mine] = tensors[theirs]

    return Host("as the inputs", (*(held[n] for n in wanted if n in held), *wanted), tuple(gives.values()), do)
