"""From a cascade to launched kernels: plans and kernels made once per dtypes, feature sizes and back end, then run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from einfuse.ir import Cascade
from einfuse.ir import row_values as derive
from einfuse.ir.backward import Backward, Step
from einfuse.ir.passes import canonicalise, differentiate
from einfuse.runtime import cache, heads, ranges, split
from einfuse.runtime.backends import Backend, BackendName
from einfuse.runtime.given import Given
from einfuse.runtime.gradients import Gradients
from einfuse.runtime.launch import Built, Choice, Launch, Ready, Recorded, recorder
from einfuse.runtime.outputs import Output, materialised, of_forward
from einfuse.runtime.recent import Recent
from einfuse.runtime.specialise import ALLOCATED, Printed, Specialisation
from einfuse.runtime.tiles import Variant
from einfuse.runtime.unchanged import Unchanged
from einfuse.runtime.walks import Walks


@dataclass
class Program:
    """Everything derived from one cascade. Thread-safe by idempotence: two threads may build the same kernel, either is right."""

    cascade: Cascade
    strict: bool = False
    wide: bool = False  # outputs stay in accumulation precision
    suspects: tuple[tuple[ranges.Suspect, tuple[str, ...]], ...] = ()  # with the tables whose values decide
    in_range: Recent[tuple[object, ...], Unchanged] = field(default_factory=Recent)
    built: Recent[tuple[Specialisation, Variant], Built] = field(default_factory=Recent)
    backwards: dict[tuple[str, ...], Backward] = field(default_factory=dict)
    lightened: dict[tuple[str, ...], Backward] = field(default_factory=dict)
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
            name = cache.key("backward", self.cascade.digest, wanted)
            self.backwards[wanted] = cache.remembered("backward", name, lambda: differentiate.run(self.canonical(), wanted))
        return self.backwards[wanted]

    def steps(self, wanted: tuple[str, ...], row_values: bool) -> tuple[Step, ...]:
        """The cascades of a backward as a back end takes them; see `Backend.row_values`."""
        found = self.backward_of(wanted)
        if not row_values:
            return found.cascades
        if wanted not in self.lightened:
            name = cache.key("row values", self.cascade.digest, wanted)
            self.lightened[wanted] = cache.remembered("backward", name, lambda: derive.run(found))
        return self.lightened[wanted].cascades

    def saving(self, wanted: tuple[str, ...]) -> Cascade:
        """The forward cascade that also gives out what the backward for ``wanted`` reads."""
        if not wanted:
            return self.cascade
        if wanted not in self.savings:
            saved = self.backward_of(wanted).saved
            outs = (*self.cascade.outs, *(n for n in saved if n not in self.cascade.outs))
            self.savings[wanted] = replace(self.canonical(), outs=outs)
        return self.savings[wanted]

    def cascades(self, backward: bool, row_values: bool = False) -> list[Cascade]:
        """The forward's, and with ``backward`` those for gradients of all inputs, for which it then saves what they read."""
        wanted = tuple(t.name for t in self.cascade.inputs if t.dtype == "float" and not t.param) if backward else ()
        steps = self.steps(wanted, row_values) if backward else ()
        return [self.saving(wanted), *(c for c, _ in steps)]

    # -- which kernel ------------------------------------------------------------------------------------------------------------

    def specialised(
        self, cascade: Cascade, given: Given, backend: Backend, outputs: Mapping[str, Output] = ALLOCATED
    ) -> Specialisation:
        """A cascade of this program for the tensors of a launch; ``outputs`` describes those that are not allocated yet."""
        backward = not set(self.cascade.outs) <= set(cascade.outs)
        return Specialisation.of(cascade, given, backend, self.strict, backward, outputs)

    def choose(self, cascade: Cascade, given: Given, backend: Backend, outputs: Mapping[str, Output] = ALLOCATED) -> Choice:
        """The kernel for a launch: tile by tile, or by lists of pairs where that is less work."""
        kernel = self.specialised(cascade, given, backend, outputs)
        variant = kernel.choose(given.sizes, given.numbers)
        lists = self.walks.choose(cascade, given, kernel.tilings[variant.start]) if self.walks.pair(cascade) else None
        if lists is None:
            return Choice(kernel, variant)
        known = given.more(lists.tables, lists.sizes)
        walking = self.specialised(lists.cascade, known, backend, outputs)
        return Choice(walking, replace(walking.choose(known.sizes, known.numbers), walk=lists.key), lists)

    def ready(self, cascade: Cascade, given: Given, backend: Backend) -> Ready:
        """One kernel for tensors like these. One that spills registers is right but slow: the next call gets smaller tiles."""
        choice = self.choose(cascade, given, backend)
        kernel, variant, lists = choice.kernel, choice.variant, choice.lists
        sizes = {**given.sizes, **lists.sizes} if lists else given.sizes
        run = self._recorded(choice, given, sizes) or self._built(kernel, variant, given, sizes)
        return run if lists is None else lambda tensors: run({**tensors, **lists.tables})

    def _built(self, kernel: Specialisation, variant: Variant, given: Given, sizes: Mapping[str, int]) -> Launch:
        """The launch of a kernel that is built once."""

        def smaller(printed: Printed) -> Built | None:
            if printed.rung + 1 >= len(kernel.tilings):
                return None
            less = kernel.printed(replace(variant, start=printed.rung + 1))
            self.built[kernel, variant] = made = Built.of(less, kernel.backend)
            return made

        built = self.built.made((kernel, variant), lambda: Built.of(kernel.printed(variant), kernel.backend))
        return Launch(built, given.numbers, sizes, smaller)

    def _recorded(self, choice: Choice, given: Given, sizes: Mapping[str, int]) -> Ready | None:
        """What records the launch, where launches are recorded; the kernel is the one that calls have come to after spills."""
        note = recorder()
        if note is None:
            return None
        known = self.built.get((choice.kernel, choice.variant))
        printed = known.printed if known else choice.kernel.printed(choice.variant)
        return lambda tensors: note(Recorded(printed, Given(tensors, given.numbers, sizes), choice))

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
        return materialised(self.outputs(cascade, tensors, sizes), device)

    def outputs(self, cascade: Cascade, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> dict[str, Output]:
        """What a forward writes."""
        return of_forward(cascade, () if self.wide else self.cascade.outs, tensors, sizes)

    def backward(
        self,
        given: Given,
        saved: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
        backend: Backend,
        wanted: tuple[str, ...],
    ) -> dict[str, torch.Tensor]:
        """The gradient of every tensor in ``wanted``, in its own dtype and layout."""
        return self.gradients.run(given, saved, gradients, backend, wanted)
