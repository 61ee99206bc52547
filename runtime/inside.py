"""What an attention is made of, without running it: its passes, its scores, and the kernels that it would launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from einfuse.codegen import KernelPlan, Storage
from einfuse.codegen.scan import Piece, ScanPlan
from einfuse.codegen.targets import Target
from einfuse.ir import Cascade, Scalar
from einfuse.ir.passes import canonicalise, classify_score
from einfuse.ir.passes.choose import Scores
from einfuse.runtime import binding, tiles
from einfuse.runtime.backends import Backend, BackendName, TritonBackend, at_hand, choose
from einfuse.runtime.binding import STORAGE
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Recorded
from einfuse.runtime.outputs import described
from einfuse.runtime.passes import PassReport as PassReport
from einfuse.runtime.passes import of_kernel
from einfuse.runtime.program import Program
from einfuse.runtime.scan import ScanProgram
from einfuse.runtime.selection import Selection
from einfuse.runtime.specialise import Printed, Specialisation
from einfuse.runtime.staged import StagedProgram
from einfuse.runtime.tiles import Variant

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention


@dataclass(frozen=True, slots=True)
class Candidate:
    """One kernel at one tiling: its plan, text and launch options; ``smaller`` gives what to take instead, nothing where it is the last."""

    plan: KernelPlan | ScanPlan
    source: str
    smaller: Callable[[], Sequence[Candidate]] = field(repr=False)
    options: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def of(piece: Piece) -> Candidate:
        """A kernel of a scan."""
        return Candidate(piece.plan, piece.source, lambda: [Candidate.of(p) for p in piece.smaller()], piece.options)

    @staticmethod
    def at(kernel: Specialisation, variant: Variant = tiles.DENSE) -> Candidate:
        """The kernel of a specialisation at the first tiling from ``variant`` on that can be held."""
        printed = kernel.printed(variant)

        def smaller() -> list[Candidate]:
            more = printed.rung + 1 < len(kernel.tilings)
            return [Candidate.at(kernel, replace(variant, start=printed.rung + 1))] if more else []

        return Candidate(printed.plan, printed.source, smaller)

    @staticmethod
    def taken(launch: Recorded) -> Candidate:
        """The kernel of a recorded launch."""
        if not isinstance(launch.kernel, Printed):
            return Candidate.of(launch.kernel)

        if launch.choice is None:
            return Candidate(launch.kernel.plan, launch.kernel.source, lambda: [])
        return Candidate.at(launch.choice.kernel, replace(launch.choice.variant, start=launch.kernel.rung))


@dataclass(frozen=True, slots=True, eq=False)
class Planned:
    """A call that is not run: the program that serves it, what it brings, its back end, and the inputs that want gradients."""

    program: Program
    given: Given
    backend: Backend
    wanted: tuple[str, ...]

    @staticmethod
    def of(
        attention: Attention,
        tensors: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        backward: bool,
        backend: Backend | None = None,
    ) -> Planned:
        """In the form that a call with these arguments takes; with ``backward`` for gradients of all its float inputs."""
        sizes: Mapping[str, int] = binding.sizes(attention.cascade, tensors)  # type: ignore[assignment]  # no trace looks inside
        dtype = binding.precision_of(attention.cascade, tensors)
        with torch.set_grad_enabled(backward):
            needs = {n: x.detach().requires_grad_(backward) if x.is_floating_point() else x for n, x in tensors.items()}
            linear = attention.linear_form(sizes, needs)
        if linear is not None:
            return Planned.of(linear, tensors, numbers, backward, backend)
        given = Given(tensors, numbers, sizes)
        chosen = backend or choose(given.device, attention.backend)
        program = attention.program.suited(chosen, lambda: dtype.itemsize == 2)
        wanted = tuple(n for n, x in tensors.items() if x.is_floating_point() and n in program.read) if backward else ()
        return Planned(program, given, chosen, wanted)

    @property
    def forward(self) -> Graph:
        """What its forward runs."""
        return self.program.graph(self.given, self.backend, self.wanted)

    def known(self, outs: Mapping[str, torch.Tensor]) -> Given:
        """What its backward reads, the outputs themselves in place of their gradients."""
        return self.given.more({**outs, **self.program.adjoints({n: outs[n] for n in self.program.cascade.outs})})

    def backward(self, known: Given) -> Graph:
        """What its backward runs."""
        return self.program.backward_graph(known, self.backend, self.wanted)


def graphs(
    attention: Attention,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Scalar],
    backward: bool = False,
    backend: Backend | None = None,
) -> list[Graph]:
    """What a call with these arguments runs; with ``backward`` what gradients of all its float inputs run, too."""
    if attention.selection is not None:
        reader, mine = attention.selection.reader({**tensors, **numbers})
        return graphs(reader, *binding.arguments(reader.cascade, (), mine), backward, backend)
    call = Planned.of(attention, tensors, numbers, backward, backend)
    outs = described(call.program.gives(call.given, call.wanted))
    return [call.forward, *([call.backward(call.known(outs))] if backward else [])]


def launched(
    attention: Attention,
    tensors: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Scalar],
    backward: bool = False,
    backend: Backend | None = None,
) -> list[Recorded]:
    """The kernels that a call with these arguments launches, in their order; with ``backward`` those for gradients of all its float inputs too.

    No kernel is built or run. Tensors whose values no mask reads may be on the meta device. ``backend`` stands for that of a device which is
    not at hand.
    """
    if attention.selection is not None:
        return _of_choices(attention.selection, {**tensors, **numbers}, backward, backend)
    call = Planned.of(attention, tensors, numbers, backward, backend)
    call.program.check_ranges(call.given)
    with torch.no_grad():
        graph = call.forward
        found, made = graph.record(dict(tensors))
        if not backward:
            return found
        known = call.known(dict(zip(graph.outs, made, strict=True)))
        return found + call.backward(known).record(dict(known.tensors))[0]


def _of_choices(
    selection: Selection, given: dict[str, torch.Tensor | Scalar], backward: bool, backend: Backend | None
) -> list[Recorded]:
    """The kernels that score what is ranked, and those of the rest. Scores are computed, for the rest depends on what they choose."""
    record: list[Recorded] = []
    for step, known in selection.steps(given):
        scorer = selection.scorers[step.target] if isinstance(step, Scores) else None
        if scorer is not None:
            record += launched(scorer, *binding.arguments(scorer.cascade, (), selection.ranked(step, known)), False, backend)  # type: ignore[arg-type]  # it is one that scores
    reader, mine = selection.reader(given)
    return record + launched(reader, *binding.arguments(reader.cascade, (), mine), backward, backend)


def passes(attention: Attention) -> tuple[PassReport, ...]:
    """See `Attention.passes`."""
    return tuple(r for kernel in attention.kernels for r in of_kernel(kernel.cascade))


def scores(attention: Attention) -> tuple[classify_score.Score, ...]:
    """See `Attention.scores`."""
    if isinstance(attention.program, ScanProgram):
        return ()
    return tuple(dict.fromkeys(s for a in attention.kernels for s in classify_score.run(canonicalise.run(a.program.flat))))


def candidates(
    attention: Attention,
    backend: BackendName,
    dtype: torch.dtype,
    backward: bool,
    sizes: Mapping[str, int],
    target: Target | None = None,
) -> list[Candidate]:
    """See `Attention.candidates`."""
    if attention.kernels != (attention,):
        return [c for kernel in attention.kernels for c in candidates(kernel, backend, dtype, backward, sizes, target)]
    whole = attention.cascade
    chosen = at_hand(backend) if target is None else TritonBackend(target=target)
    program = attention.program.suited(chosen, lambda: dtype.itemsize == 2)
    if isinstance(program, ScanProgram):
        tables = [example_storage(whole, c, dtype) for c in program.cascades(backward, chosen)]
        return [Candidate.of(p) for p in program.candidates(chosen, tables, backward, sizes)]
    out = []
    for part in program.parts if isinstance(program, StagedProgram) else (program,):
        for n, c in enumerate(part.cascades(backward, chosen)):
            static = {r.size: sizes.get(r.size, 64) for r in c.ranks if r.kind == "feature" and isinstance(r.size, str)}
            storage = example_storage(part.cascade, c, dtype)
            out.append(Candidate.at(Specialisation(c, storage, static, chosen, attention.strict, n > 0)))
    return out


def example_storage(whole: Cascade, c: Cascade, dtype: torch.dtype) -> dict[str, Storage]:
    """Storage of a cascade made of ``whole``, as a call with tensors of ``dtype`` would have it."""
    own = STORAGE[dtype]
    wide: Storage = "f64" if dtype == torch.float64 else "f32"
    kinds: dict[str, Storage] = {"float": own, "int": "i64", "bool": "bool"}
    statistics = {t.name for t in c.inputs} - {t.name for t in whole.inputs} - set(whole.outs)
    out = {t.name: wide if t.name in statistics and not t.name.startswith("d_") else kinds[t.dtype] for t in c.inputs}
    return out | {n: own if n in whole.outs else wide for n in c.outs}
