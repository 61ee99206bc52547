"""From a cascade to launched kernels: plans and kernels made once per dtypes, feature sizes and back end, then run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from einfuse.codegen import KernelPlan, Storage
from einfuse.ir import Cascade, Scalar
from einfuse.ir.backward import Backward
from einfuse.ir.nodes import Einsum
from einfuse.ir.passes import canonicalise, differentiate
from einfuse.ir.text import show
from einfuse.runtime import cache, heads, ranges, split, tiles
from einfuse.runtime.backends import Backend, BackendName
from einfuse.runtime.binding import STORAGE, extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.gradients import Gradients
from einfuse.runtime.kernels import kernel_key, static_sizes, storage_of, tiled, tilings
from einfuse.runtime.launch import Built, Launch, Ready
from einfuse.runtime.memory import empty
from einfuse.runtime.recent import Recent
from einfuse.runtime.tiles import Variant
from einfuse.runtime.unchanged import Unchanged
from einfuse.runtime.walks import Chosen, Walks


@dataclass(frozen=True, slots=True)
class Output:
    """A tensor that a launch writes; ``cleared``: not all of it, the rest is 0."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    cleared: bool = False

    def materialised(self, device: torch.device) -> torch.Tensor:
        if self.cleared:
            return torch.zeros(self.shape, dtype=self.dtype, device=device)
        return empty(self.shape, self.dtype, device)


@dataclass
class Program:
    """Everything derived from one cascade. Thread-safe by idempotence: two threads may build the same kernel, either is right."""

    cascade: Cascade
    strict: bool = False
    wide: bool = False  # outputs stay in accumulation precision
    suspects: tuple[tuple[ranges.Suspect, tuple[str, ...]], ...] = ()  # with the tables whose values decide
    in_range: Recent[tuple[object, ...], Unchanged] = field(default_factory=Recent)
    built: Recent[tuple[object, ...], Built] = field(default_factory=Recent)
    variants: Recent[tuple[object, ...], Variant] = field(default_factory=Recent)
    backwards: dict[tuple[str, ...], Backward] = field(default_factory=dict)
    savings: dict[tuple[str, ...], Cascade] = field(default_factory=dict)
    walks: Walks = field(init=False)

    def __post_init__(self) -> None:
        self.walks = Walks(self.strict)
        tensors = {t.name for t in self.cascade.inputs if not t.param}
        self.suspects = tuple((x, tuple(sorted(x.tables & tensors))) for x in ranges.suspects(self.cascade))

    def check_ranges(self, given: Given) -> None:
        """Raises ValueError where a read would leave its tensor. Free once seen, until the values of a table that decides change."""
        if not self.suspects:
            return
        key = given.key
        for n, (suspect, deciding) in enumerate(self.suspects):
            tables = [given.tensors[name] for name in deciding]
            if any(not x.is_cpu for x in tables):
                continue  # looking would stall the device; kernels clamp
            seen = self.in_range.get((n, key))
            if seen is None or not seen.are(tables):
                ranges.check(self.cascade, suspect, given)
                now = Unchanged.of(tables)
                if now is not None:
                    self.in_range[n, key] = now

    def canonical(self) -> Cascade:
        return canonicalise.run(self.cascade)

    @functools.cached_property
    def halves(self) -> split.Halves | None:
        """The two steps that take parts of the keys and put them together; None where there are none."""
        return split.halves(self)

    @functools.cached_property
    def heads(self) -> heads.Heads | None:
        """The program for calls of one query in which heads that share keys are rows of one tile; None where there is none."""
        return heads.stacked(self)

    @functools.cached_property
    def gradients(self) -> Gradients:
        """How its backward is run."""
        return Gradients(self)

    def suited(self, backend: BackendName, narrow: bool) -> Program:
        """The program that does the same best on a back end; ``narrow``: on tensors of 16 bits."""
        return self

    def backward_of(self, wanted: tuple[str, ...]) -> Backward:
        """The backward cascades for gradients of ``wanted``; derived once."""
        if wanted not in self.backwards:
            name = cache.key("backward", show(self.cascade), wanted)
            self.backwards[wanted] = cache.remembered("backward", name, lambda: differentiate.run(self.canonical(), wanted))
        return self.backwards[wanted]

    def saving(self, wanted: tuple[str, ...]) -> Cascade:
        """The forward cascade that also gives out what the backward for ``wanted`` reads."""
        if not wanted:
            return self.cascade
        if wanted not in self.savings:
            saved = self.backward_of(wanted).saved
            outs = (*self.cascade.outs, *(n for n in saved if n not in self.cascade.outs))
            self.savings[wanted] = replace(self.canonical(), outs=outs)
        return self.savings[wanted]

    def cascades(self, backward: bool) -> list[Cascade]:
        """The forward's, and with ``backward`` those for gradients of all inputs, for which it then saves what they read."""
        wanted = tuple(t.name for t in self.cascade.inputs if t.dtype == "float" and not t.param) if backward else ()
        steps = self.backward_of(wanted).cascades if backward else ()
        return [self.saving(wanted), *(c for c, _ in steps)]

    def ready(self, cascade: Cascade, given: Given, backend: Backend) -> Ready:
        """The kernel of one cascade for tensors like these: tile by tile, or by lists of pairs where that is less work."""
        chosen = self.walked(cascade, given, backend)
        if chosen is None:
            return self._tiled(cascade, given, backend)
        run = self._tiled(chosen.cascade, given.more(chosen.tables, chosen.sizes), backend, chosen.key)
        return lambda tensors: run({**tensors, **chosen.tables})

    def walked(self, cascade: Cascade, given: Given, backend: Backend) -> Chosen | None:
        """The lists by which a launch of a cascade walks its pairs, None where it takes tiles."""
        if self.walks.pair(cascade) is None:
            return None  # soon said of most
        storage = {t.name: STORAGE[given.tensors[t.name].dtype] for t in cascade.inputs if not t.param}
        static = static_sizes(cascade, given.sizes)
        start = self.variant(cascade, storage, static, given.numbers, given.sizes, backend)[1].start
        ladder = tilings(cascade, storage, static, backend, self._is_backward(cascade))
        return self.walks.choose(cascade, given, ladder[start])

    def _tiled(self, cascade: Cascade, given: Given, backend: Backend, walk: str = "") -> Launch:
        """One kernel, that which suits its masks. One that spills registers is right but slow: the next call gets smaller tiles."""
        storage, static = storage_of(cascade, given.tensors), static_sizes(cascade, given.sizes)
        key, suited = self.variant(cascade, storage, static, given.numbers, given.sizes, backend)
        variant = replace(suited, walk=walk)
        which = (*key, variant)

        def smaller(built: Built) -> Built | None:
            if built.rung + 1 >= len(tilings(cascade, storage, static, backend, self._is_backward(cascade))):
                return None
            made = self._build(cascade, storage, static, backend, replace(variant, start=built.rung + 1))
            self.built[which] = made
            return made

        built = self.built.made(which, lambda: self._build(cascade, storage, static, backend, variant))
        return Launch(built, given.numbers, given.sizes, smaller)

    def variant(
        self,
        cascade: Cascade,
        storage: Mapping[str, Storage],
        static: dict[str, int],
        numbers: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        backend: Backend,
    ) -> tuple[tuple[object, ...], Variant]:
        """The key of the cascade's kernels for such tensors, and the one that suits its masks at about these sizes and host numbers."""
        key, about = kernel_key(cascade, storage, static, backend), tiles.rounded(sizes)
        here = (*key, *sorted(about.items()), *sorted(numbers.items()))

        def suited() -> Variant:
            ladder = tilings(cascade, storage, static, backend, self._is_backward(cascade))
            return tiles.variant(cascade, ladder, numbers, about, self.strict)

        return key, self.variants.made(here, suited)

    def _is_backward(self, cascade: Cascade) -> bool:
        return not set(self.cascade.outs) <= set(cascade.outs)

    def _build(
        self, cascade: Cascade, storage: Mapping[str, Storage], static: dict[str, int], backend: Backend, variant: Variant
    ) -> Built:
        ladder = tilings(cascade, storage, static, backend, self._is_backward(cascade))
        left, sizes = ladder[variant.start :], dict(variant.small)
        stored, known = sorted(storage.items()), sorted(static.items())
        name = cache.key("plan", show(cascade), stored, known, backend.name, left, variant.small, self.strict)

        def make() -> tuple[Cascade, KernelPlan, str, int]:
            scheduled, plan, rest = tiled(cascade, storage, static, backend, left, self.strict, sizes)
            return scheduled, plan, backend.emit(plan), len(ladder) - len(rest) - 1

        scheduled, plan, source, taken = cache.remembered("plan", name, make)
        return Built(scheduled, plan, source, backend.build(plan, source, cache.folder() / backend.name), taken)

    # -- running -------------------------------------------------------------------------------------------------------------

    def forward(self, given: Given, backend: Backend, wanted: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        """The outputs, and what the backward for ``wanted`` will read."""
        cascade = self.saving(wanted)
        self.check_ranges(given)
        outs = self.allocate(cascade, given.tensors, given.sizes)
        if any(x.numel() for x in outs.values()):
            known = given.more(outs)
            self.launch(cascade, known, backend)(known.tensors)
        return outs

    def launch(self, cascade: Cascade, given: Given, backend: Backend) -> Ready:
        """A forward for tensors like these (outputs included): one kernel, or parts of the keys and their merge if that kept workers idle."""
        if cascade is not self.cascade:
            return self.ready(cascade, given, backend)
        other = self.heads
        stacked = other.taken(given) if other else None
        if other and stacked:
            return other.program.launch(other.program.cascade, stacked, backend)
        count = split.planned(self, given.sizes, backend.workers(given.device))
        inparts = split.ready(self, count, given, backend) if count > 1 else None
        return inparts or self.ready(cascade, given, backend)

    def allocate(
        self, cascade: Cascade, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        """Fresh outputs of a forward."""
        device = next(iter(tensors.values())).device
        return {n: x.materialised(device) for n, x in self.outputs(cascade, tensors, sizes).items()}

    def outputs(self, cascade: Cascade, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, Output]:
        """What a forward writes: values with features in the dtype of the inputs, row statistics in accumulation precision."""
        floats = [tensors[t.name] for t in cascade.inputs if t.dtype == "float" and not t.param]
        dtype = floats[0].dtype if floats else torch.get_default_dtype()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        ranks = {x.target: x.ranks for x in cascade.body if isinstance(x, Einsum)}
        sequence = {r.name for r in cascade.ranks if r.is_sequence}
        out = {}
        for name in cascade.outs:
            shape = tuple(extent_of(cascade, r, sizes) for r in (*cascade.over, *ranks[name]))
            public = not self.wide and name in self.cascade.outs and not set(ranks[name]) <= sequence
            pair = len(set(ranks[name]) & sequence) > 1  # only live points are written
            out[name] = Output(shape, dtype if public or pair else wide, pair)
        return out

    def backward(
        self,
        given: Given,
        saved: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
        backend: Backend,
        wanted: tuple[str, ...],
    ) -> dict[str, torch.Tensor]:
        """The gradient of every tensor in ``wanted``, in its own dtype."""
        return self.gradients.run(given, saved, gradients, backend, wanted)
