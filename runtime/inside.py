"""What an attention is made of, without running it: its passes, its scores, and the kernels that it would launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from einfuse.codegen import KernelPlan, Storage
from einfuse.codegen.scan import Piece, ScanPlan
from einfuse.ir import Cascade, derivation
from einfuse.ir.passes import canonicalise, classify_score
from einfuse.runtime import derived
from einfuse.runtime.backends import Backend, BackendName, Target, Tilings, TritonBackend, device_target, named
from einfuse.runtime.binding import STORAGE
from einfuse.runtime.kernels import tiled, tilings
from einfuse.runtime.scan import ScanProgram

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention


@dataclass(frozen=True, slots=True)
class PassReport:
    """The passes over one rank before and after fusing, and why those that remain do."""

    rank: str
    before: int
    after: int
    reads: tuple[tuple[str, str], ...]
    decisions: tuple[derivation.Decision, ...]


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
    def at(
        cascade: Cascade,
        storage: Mapping[str, Storage],
        static: Mapping[str, int],
        backend: Backend,
        tilings: Tilings,
        strict: bool,
        small: Mapping[str, int] = MappingProxyType({}),
    ) -> Candidate:
        """The kernel at the first of the tilings that can be held; ``small`` as for `einfuse.codegen.hold`."""
        _, plan, rest = tiled(cascade, storage, static, backend, tilings, strict, small)
        return Candidate(
            plan,
            backend.emit(plan),
            lambda: [Candidate.at(cascade, storage, static, backend, rest, strict, small)] if rest else [],
        )


def passes(attention: Attention) -> tuple[PassReport, ...]:
    """See `Attention.passes`."""
    if isinstance(attention.program, ScanProgram):
        return (PassReport(attention.program.rank, 1, 1, (), ()),)
    if attention.stages:
        return tuple(report for stage in attention.stages for report in passes(stage))
    out = []
    for found in derived.derivations(canonicalise.run(attention.cascade)):
        cuts = tuple((d.statistic, d.reader) for d in found.decisions if d.how == "cut")
        before = derivation.count_passes(attention.cascade, found.rank)
        out.append(PassReport(found.rank, before, found.passes, cuts, tuple(found.decisions)))
    return tuple(out)


def scores(attention: Attention) -> tuple[classify_score.Score, ...]:
    """See `Attention.scores`."""
    if isinstance(attention.program, ScanProgram):
        return ()
    stages = attention.stages or (attention,)
    return tuple(dict.fromkeys(s for a in stages for s in classify_score.run(canonicalise.run(a.cascade))))


def candidates(
    attention: Attention,
    backend: BackendName,
    dtype: torch.dtype,
    backward: bool,
    sizes: Mapping[str, int],
    target: Target | None = None,
) -> list[Candidate]:
    """See `Attention.candidates`."""
    whole = attention.cascade
    program = attention.program.suited(backend, dtype.itemsize == 2)
    if isinstance(program, ScanProgram):
        tables = [example_storage(whole, c, dtype) for c in program.cascades(backward)]
        return [Candidate.of(p) for p in program.candidates(backend, tables, backward, sizes, target or device_target())]
    if attention.stages:
        return [c for stage in attention.stages for c in candidates(stage, backend, dtype, backward, sizes, target)]
    chosen = named(backend) if target is None else TritonBackend(target=target)
    out = []
    for n, c in enumerate(program.cascades(backward)):
        static = {r.size: sizes.get(r.size, 64) for r in c.ranks if r.kind == "feature" and isinstance(r.size, str)}
        storage = example_storage(whole, c, dtype)
        out.append(Candidate.at(c, storage, static, chosen, tilings(c, storage, static, chosen, n > 0), attention.strict))
    return out


def example_storage(whole: Cascade, c: Cascade, dtype: torch.dtype) -> dict[str, Storage]:
    """Storage of a cascade made of ``whole``, as a call with tensors of ``dtype`` would have it."""
    own = STORAGE[dtype]
    wide: Storage = "f64" if dtype == torch.float64 else "f32"
    kinds: dict[str, Storage] = {"float": own, "int": "i64", "bool": "bool"}
    statistics = {t.name for t in c.inputs} - {t.name for t in whole.inputs} - set(whole.outs)
    out = {t.name: wide if t.name in statistics and not t.name.startswith("d_") else kinds[t.dtype] for t in c.inputs}
    return out | {n: own if n in whole.outs else wide for n in c.outs}
