"""Programs of cascades that take several kernels one after the other (`ir.passes.stages`): graphs whose nodes are the graphs of the stages.

    q, k  ->  [stage 1]  ->  l  ->  [stage 2]  ->  o              d_o  ->  [stage 2]  ->  d_l, d_q  ->  [stage 1]  ->  d_q, d_k

The gradients that several stages give to one tensor are added up in its dtype.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from einfuse.ir import Cascade, Flat, Scan
from einfuse.ir.passes import choose, look_up, stages
from einfuse.ir.passes.backward import adjoint
from einfuse.ir.rewrite import statements
from einfuse.runtime import through
from einfuse.runtime.backends import Backend
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Host, Node, Part, Tensors
from einfuse.runtime.outputs import Output, described
from einfuse.runtime.program import Mode, Program
from einfuse.runtime.scan import ScanProgram

FEW = 128
"""Rows of one tile: they read each key once anyway."""


def program_of(cascade: Cascade, strict: bool, wide: bool = False) -> Program:
    """The program of any cascade: of a scan, of one kernel, or of several."""
    if isinstance(cascade, Scan):
        return ScanProgram(cascade, strict)
    assert isinstance(cascade, Flat), "programs are of cascades as built"
    if through.drives(cascade):
        apart = through.routes_apart(cascade)
        if apart is not None:
            return StagedProgram(cascade, strict, wide, stages=apart)
        return through.ListedProgram(cascade, strict, wide)
    if choose.chooses(cascade):  # its kernels are those of its parts (`runtime.selection`)
        return Program(cascade, strict, wide)
    whole, looked = stages.run(cascade), look_up.run(cascade)
    cut = whole if looked is cascade else stages.run(looked)
    if len(whole) > 1:
        return StagedProgram(cascade, strict, wide, stages=whole if wide else cut)
    program = Program(cascade, strict, wide)
    return program if wide or len(cut) == 1 else RowsFirst(cascade, strict, stages=cut, whole=program)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a call: its program, its arguments, those of them that have gradients, and what the whole calls what it gives out."""

    program: Program
    given: Given
    wanted: tuple[str, ...]
    names: Mapping[str, str]


@dataclass
class StagedProgram(Program):
    """Everything derived from such a cascade; each stage is a `Program` of its own."""

    stages: tuple[Cascade, ...] = ()
    parts: tuple[Program, ...] = field(init=False)
    exact: ClassVar[bool] = True  # stages have sizes of their own

    def __post_init__(self) -> None:
        super().__post_init__()
        own = {x.target for x in statements(self.cascade)}
        looked = {x.target for x in statements(look_up.run(self.flat))} - own
        self.parts = tuple(_program(c, self.strict, not looked.isdisjoint(c.outs)) for c in self.stages)

    def check_ranges(self, given: Given) -> None:
        """See `Program.check_ranges`: stages know what they read as lists."""
        if not through.drives(self.cascade):
            super().check_ranges(given)
            return
        for s in self._planned(given, ()):
            s.program.check_ranges(s.given)

    def mode(self, given: Given) -> Mode:
        """See `Program.mode`: by lists where one stage takes them so."""
        modes = [s.program.mode(s.given) for s in self._planned(given, ()) if through.drives(s.program.cascade)]
        return next((m for m in modes if m.lists), modes[0]) if modes else super().mode(given)

    def kept(self, wanted: tuple[str, ...]) -> tuple[str, ...]:
        """The outputs, then what the stages give to each other and their backward passes read."""
        names = (n for p, asked in self._asked(wanted) for n in _names(p, p.kept(asked)).values()) if wanted else ()
        return (*self.cascade.outs, *dict.fromkeys(n for n in names if n not in self.cascade.outs))

    def gives(self, given: Given, wanted: tuple[str, ...] = ()) -> dict[str, Output]:
        """What a forward writes."""
        found = {s.names[n]: x for s in self._planned(given, wanted) for n, x in s.program.gives(s.given, s.wanted).items()}
        return {n: found[n] for n in self.kept(wanted)}

    def graph(self, given: Given, backend: Backend, wanted: tuple[str, ...] = ()) -> Graph:
        """The forward of every stage."""

        def nodes(given: Given) -> Iterator[Node]:
            for s in self._planned(given, wanted):
                inner = s.program.graph(s.given, backend, s.wanted)
                yield Part(
                    s.program.cascade.name, inner, {n: n for n in s.given.tensors}, tuple(s.names[n] for n in inner.outs)
                )

        return Graph(nodes, given, self.kept(wanted))

    def backward_graph(self, known: Given, backend: Backend, wanted: tuple[str, ...]) -> Graph:
        """The backward of every stage, from the last to the first."""
        return Graph(functools.partial(self._reversed, backend, wanted), known, [f"gradient of {n}" for n in wanted])

    def _reversed(self, backend: Backend, wanted: tuple[str, ...], known: Given) -> Iterator[Node]:
        terms: dict[str, list[str]] = {n: [adjoint(n)] for n in self.cascade.outs}  # of the gradient of each tensor
        for s in reversed([s for s in self._planned(known, wanted) if s.wanted]):
            c = s.program.cascade
            yield from (_sum(n, terms.get(n, ())) for n in c.outs)
            takes = {inner: outer for inner, outer in s.names.items() if outer in known.tensors}
            takes |= {n: n for n in s.given.tensors} | {adjoint(n): f"gradient of {n}" for n in c.outs}
            more = {inner: known.tensors[outer] for inner, outer in s.names.items() if outer in known.tensors}
            mine = s.given.more({**more, **{adjoint(n): known.tensors[n] for n in c.outs}})
            given = [f"gradient of {n} by {c.name}" for n in s.wanted]
            yield Part(f"{c.name} backward", s.program.backward_graph(mine, backend, s.wanted), takes, tuple(given))
            for n, term in zip(s.wanted, given, strict=True):
                terms.setdefault(n, []).append(term)
        yield from (_sum(n, terms.get(n, ())) for n in wanted)

    def _asked(self, wanted: tuple[str, ...]) -> Iterator[tuple[Program, tuple[str, ...]]]:
        """The stages, and the inputs of each that gradients go through; one that is taken for its shape alone has none."""
        needed = set(wanted)
        for p in self.parts:
            floats = (t.name for t in p.cascade.inputs if t.dtype == "float" and not t.param)
            asked = tuple(n for n in floats if n in needed & p.read)
            needed |= set(p.cascade.outs) if asked else set()
            yield p, asked

    def _planned(self, given: Given, wanted: tuple[str, ...]) -> Iterator[Stage]:
        """The stages of a call, each with the arguments that it takes of the call and of those before it."""
        for p, asked in self._asked(wanted):
            mine = given.read_by(p.cascade)
            mine = replace(Given.of(p.cascade, mine.tensors, mine.numbers), at=given.at)
            outs = p.gives(mine, asked)
            yield Stage(p, mine, asked, _names(p, outs))
            given = given.more(described({n: outs[n] for n in p.cascade.outs}))


@dataclass
class RowsFirst(StagedProgram):
    """The stages of a program in which rows come first: what is dear of them, on GPUs and in 16 bits, and what pairs look up. Calls of `FEW`
    rows run the ``whole``, as it is: they read less than what is made of the keys, as in decoding."""

    whole: Program = field(kw_only=True)

    def graph(self, given: Given, backend: Backend, wanted: tuple[str, ...] = ()) -> Graph:
        return self.whole.graph(given, backend) if not wanted and self._few(given) else super().graph(given, backend, wanted)

    def _few(self, given: Given) -> bool:
        """Whether the rows of the outputs are few."""
        c = self.cascade
        made = {r for x in statements(c) if x.target in c.outs for r in x.ranks}
        rows = [extent_of(c, r.name, given.sizes) for r in c.ranks if r.is_sequence and r.name in made]
        return max(rows, default=1) <= FEW


def rows_first(program: Program) -> Program:
    """A program whose kernels compute what is dear of rows once (`ir.dear`); the same where there is nothing such."""
    c = program.cascade
    if program.wide or choose.chooses(c) or not isinstance(c, Flat):
        return program
    looked = look_up.run(c)
    cut, before = stages.run(looked, rows_first=True), stages.run(looked)
    return program if len(cut) == len(before) else RowsFirst(c, program.strict, stages=cut, whole=program)


def _program(stage: Cascade, strict: bool, inner: bool) -> Program:
    """The program of a stage; what pairs look up in ``inner`` ones is added to scores, in accumulation precision."""
    return through.ListedProgram(stage, strict) if through.drives(stage) else Program(stage, strict, wide=inner, inner=inner)


def _names(program: Program, outs: Iterable[str]) -> dict[str, str]:
    """What the whole calls the outputs of a stage: what it saves for itself is its own."""
    c = program.cascade
    return {n: n if n in c.outs else f"{n} of {c.name}" for n in outs}


def _sum(name: str, terms: Iterable[str]) -> Host:
    """The gradient of a tensor as the sum of its terms, zeros where there are none."""
    terms = tuple(terms)

    def do(tensors: Tensors, call: Given) -> None:
        found = [tensors[n] for n in terms]
        tensors[f"gradient of {name}"] = sum(found[1:], found[0]) if found else tensors[name].new_zeros(tensors[name].shape)

    return Host("add up", terms or (name,), (f"gradient of {name}",), do)
