"""Which kernel a cascade becomes: everything that its text depends on, the tiling that suits a call, and the text itself.

    cascade, dtypes, feature widths, back end  --Specialisation-->  candidate tilings  --choose(sizes, numbers)-->  Variant  --build-->  kernel

Calls, `cross_compile`, shares of live tiles and benchmarks all ask here, so what one reports is what another launches.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from einfuse.codegen import KernelPlan, Storage, lower
from einfuse.codegen.plan import show, verify
from einfuse.codegen.precision import precision
from einfuse.ir import Cascade, Scalar, debug
from einfuse.ir.expr import walk
from einfuse.ir.rewrite import statements
from einfuse.runtime import cache, derived, tiles
from einfuse.runtime.backends import Backend, Tilings
from einfuse.runtime.binding import STORAGE
from einfuse.runtime.given import Given
from einfuse.runtime.tiles import NARROWEST, Variant


@dataclass(frozen=True, slots=True)
class Printed:
    """The text of a kernel with its plan and scheduled cascade; ``rung`` is the place of its tiling among the candidates."""

    cascade: Cascade
    plan: KernelPlan
    source: str
    rung: int = 0


@dataclass(frozen=True, eq=False)
class Specialisation:
    """A cascade for the storage types and feature sizes of a launch on a back end: all that its kernels' texts depend on.

    Two are equal when their cascades' digests and everything else agree. ``backward`` chooses the candidate tilings.
    """

    cascade: Cascade
    storage: Mapping[str, Storage]
    static: Mapping[str, int]
    backend: Backend
    strict: bool = False
    backward: bool = False

    @staticmethod
    def of(
        cascade: Cascade,
        given: Given,
        backend: Backend,
        strict: bool = False,
        backward: bool = False,
    ) -> Specialisation:
        """For the tensors of a launch."""
        storage = {n: STORAGE[given.tensors[n].dtype] for n in (*tensors(cascade), *cascade.outs)}
        return Specialisation(cascade, storage, static_sizes(cascade, given.sizes), backend, strict, backward)

    @functools.cached_property
    def key(self) -> tuple[object, ...]:
        """What two equal specialisations share; hashable."""
        stored, static = tuple(sorted(self.storage.items())), tuple(sorted(self.static.items()))
        return (self.cascade.digest, stored, static, self.backend.identity, self.strict, self.backward)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Specialisation) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @functools.cached_property
    def tilings(self) -> Tilings:
        """The candidate tiles and steps, the best for a long call without a mask first."""
        widths = [r.size if isinstance(r.size, int) else self.static[r.size] for r in self.cascade.ranks if r.kind == "feature"]
        found = self.backend.tilings(precision(self.cascade, self.storage), max(widths, default=1), self._gradients)
        most = _one_entry(self.cascade) if self.backend.dear_masks else None
        return found if most is None else tuple(dict.fromkeys((block, min(step, most)) for block, step in found))

    @property
    def _gradients(self) -> int:
        """How many blocks of rows and features a kernel of a backward gives out, at least 1; 0 in a forward."""
        features = {r.name for r in self.cascade.ranks if r.kind == "feature"}
        wide = [x for x in statements(self.cascade) if x.target in self.cascade.outs and features & set(x.ranks)]
        return max(1, len(wide)) if self.backward else 0

    def choose(self, sizes: Mapping[str, int], numbers: Mapping[str, Scalar]) -> Variant:
        """The kernel for a call of about these sizes: the tiling that visits least, and whether the call is short enough for none."""
        return _chosen(self, tuple(sorted(tiles.rounded(sizes).items())), tuple(sorted(numbers.items())))

    def printed(self, variant: Variant) -> Printed:
        """The text at the first tiling from ``variant.start`` on that the back end can hold; from disk where it was made before."""
        left = self.tilings[variant.start :]

        def make() -> Printed:
            for rung, (block, step) in enumerate(left, variant.start):
                scheduled = derived.scheduled(self.cascade, block, step, self.strict)
                plan = _prepared(self, scheduled, dict(variant.small))
                if self.backend.holds(plan) or rung == len(self.tilings) - 1:
                    break
            return Printed(scheduled, plan, _emitted(self.backend, plan), rung)

        return cache.remembered("plan", cache.key("plan", self.key, left, variant.small), make)


@dataclass(frozen=True, slots=True)
class Fused:
    """Two cascades that walk the same pairs, ``rows`` by its rows and ``columns`` by its own, as one kernel tiled like ``columns``."""

    rows: Specialisation
    columns: Specialisation

    def printed(self, small: tuple[tuple[str, int], ...]) -> Printed | None:
        """The text at the first tiling; None where the back end makes no kernel of both. ``small`` as in `Variant`."""
        backend = self.columns.backend
        block, step = self.columns.tilings[0]

        def make() -> Printed | None:
            both = [(s, derived.scheduled(s.cascade, block, step, s.strict)) for s in (self.rows, self.columns)]
            masks = [[x.mask for x in c.folds] for _, c in both]
            if masks[0] != masks[1]:
                return None  # they do not walk the same pairs
            first, second = (_prepared(s, c, dict(small)) for s, c in both)
            plan = backend.merge(first, second)
            return Printed(both[1][1], plan, _emitted(backend, plan)) if plan else None

        return cache.remembered("plan", cache.key("fused", self.rows.key, self.columns.key, (block, step), small), make)


def _one_entry(cascade: Cascade) -> int | None:
    """The longest step whose columns all stand in a block that one entry of a list of the call names; None where there are no such blocks."""
    made = {t.name for t in cascade.inputs if t.made}
    every = (e for x in statements(cascade) for y in x.expressions for e in walk(y))
    slots = (e.args[-1] for e in every if e.op == "load" and e.name in made and e.args)
    widths = (int(e.args[1].value) for e in slots if e.op == "//" and e.args[0].op == "index" and e.args[1].op == "const")  # type: ignore[arg-type]  # ints
    return min((most for n in widths if (most := n & -n) >= NARROWEST), default=None)


def _prepared(kernel: Specialisation, scheduled: Cascade, small: Mapping[str, int]) -> KernelPlan:
    """The plan of a scheduled cascade, as its back end prints it."""
    plan = lower(scheduled, kernel.storage, kernel.static, kernel.backend.dear_masks)
    verify(plan)
    return kernel.backend.prepared(plan, small)


def _emitted(backend: Backend, plan: KernelPlan) -> str:
    verify(plan)
    if debug.enabled("plan"):
        debug.show(f"plan {plan.name} for {backend.name}", show(plan))
    source = backend.emit(plan)
    if debug.enabled("source"):
        debug.show(f"source {plan.name} for {backend.name}", source)
    return source


def tensors(cascade: Cascade) -> list[str]:
    """The names of the inputs that are tensors."""
    return [t.name for t in cascade.inputs if not t.param]


def static_sizes(cascade: Cascade, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that are part of a kernel's text: those of its features."""
    return {r.size: sizes[r.size] for r in cascade.ranks if r.kind == "feature" and isinstance(r.size, str)}


@functools.lru_cache(4096)
def _chosen(kernel: Specialisation, sizes: tuple[tuple[str, int], ...], numbers: tuple[tuple[str, Scalar], ...]) -> Variant:
    return tiles.variant(kernel.cascade, kernel.tilings, dict(numbers), dict(sizes), kernel.strict, kernel.backend.narrow)
