"""How often the kernels of a cascade go over a rank, before and after fusing, and why. Without torch: editors ask it too."""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.ir import Cascade, Scan, derivation
from einfuse.ir.passes import canonicalise
from einfuse.ir.passes.kernels import kernels
from einfuse.ir.rewrite import flat
from einfuse.runtime import derived


@dataclass(frozen=True, slots=True)
class PassReport:
    """The passes over one rank before and after fusing, and why those that remain do."""

    rank: str
    before: int
    after: int
    reads: tuple[tuple[str, str], ...]
    decisions: tuple[derivation.Decision, ...]

    @property
    def counted(self) -> str:
        """``3 passes -> 1``"""
        return f"{self.before} pass{'es' * (self.before != 1)} -> {self.after}"


def reports(cascade: Cascade) -> tuple[PassReport, ...]:
    """One for every folded rank, kernel after kernel. A scan is one pass over its rank by what it is."""
    return tuple(r for kernel in kernels(cascade) for r in of_kernel(kernel))


def of_kernel(kernel: Cascade) -> tuple[PassReport, ...]:
    """The same of a cascade that one kernel computes."""
    if isinstance(kernel, Scan):
        return (PassReport(kernel.fold.rank, 1, 1, (), ()),)
    kernel = flat(kernel, f"{kernel.name} is fused already")
    out = []
    for found in derived.derivations(canonicalise.run(kernel)):
        cuts = tuple((d.statistic, d.reader) for d in found.decisions if d.how == "cut")
        before = derivation.count_passes(kernel, found.rank)
        out.append(PassReport(found.rank, before, found.passes, cuts, tuple(found.decisions)))
    return tuple(out)
