"""From a cascade to launched kernels: plans and kernels made once per dtypes, feature sizes and back end, then run."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch

from einfuse.codegen import KernelPlan, Storage, lower
from einfuse.ir import Cascade, Scalar
from einfuse.ir import index as coordinate
from einfuse.ir.backward import Backward, Gradient, adjoint
from einfuse.ir.nodes import Einsum, Fold
from einfuse.ir.passes import canonicalise, differentiate
from einfuse.ir.text import show
from einfuse.runtime import cache, derived, heads, ranges, split, tiles
from einfuse.runtime.backends import Backend, Tilings
from einfuse.runtime.binding import STORAGE, extent_of
from einfuse.runtime.launch import Built, Launch, Ready
from einfuse.runtime.memory import empty
from einfuse.runtime.pairs import Pairs
from einfuse.runtime.scatter import accumulate, contracted
from einfuse.runtime.tiles import Variant
from einfuse.runtime.unchanged import Unchanged
from einfuse.runtime.walks import Chosen, Walks

Step = tuple[Cascade, tuple[Gradient, ...]]
"""A cascade of a backward, and the gradients it gives."""


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
    in_range: dict[tuple[object, ...], Unchanged] = field(default_factory=dict)
    built: dict[tuple[object, ...], Built] = field(default_factory=dict)
    variants: dict[tuple[object, ...], Variant] = field(default_factory=dict)
    pairs: dict[tuple[object, ...], Built | None] = field(default_factory=dict)
    backwards: dict[tuple[str, ...], Backward] = field(default_factory=dict)
    dense: dict[tuple[object, ...], Pairs | None] = field(default_factory=dict)
    savings: dict[tuple[str, ...], Cascade] = field(default_factory=dict)
    walks: Walks = field(init=False)

    def __post_init__(self) -> None:
        self.walks = Walks(self.strict)
        tensors = {t.name for t in self.cascade.inputs if not t.param}
        self.suspects = tuple((x, tuple(sorted(x.tables & tensors))) for x in ranges.suspects(self.cascade))

    def check_ranges(
        self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Scalar], sizes: Mapping[str, int]
    ) -> None:
        """Raises ValueError where a read would leave its tensor. Free once seen, until the values of a table that decides change."""
        if not self.suspects:
            return
        key = (*sorted(sizes.items()), *sorted(numbers.items()))
        for n, (suspect, deciding) in enumerate(self.suspects):
            tables = [tensors[name] for name in deciding]
            if any(not x.is_cpu for x in tables):
                continue  # looking would stall the device; kernels clamp
            seen = self.in_range.get((n, key))
            if seen is None or not seen.are(tables):
                ranges.check(self.cascade, suspect, tensors, numbers, sizes)
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

    def ready(
        self,
        cascade: Cascade,
        tensors: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        backend: Backend,
    ) -> Ready:
        """The kernel of one cascade for tensors like these: tile by tile, or by lists of pairs where that is less work."""
        chosen = self.walked(cascade, tensors, numbers, sizes, backend)
        if chosen is None:
            return self._tiled(cascade, tensors, numbers, sizes, backend)
        given = {**tensors, **chosen.tables}
        run = self._tiled(chosen.cascade, given, numbers, {**sizes, **chosen.sizes}, backend, chosen.key)
        return lambda tensors: run({**tensors, **chosen.tables})

    def walked(
        self,
        cascade: Cascade,
        tensors: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        backend: Backend,
    ) -> Chosen | None:
        """The lists by which a launch of a cascade walks its pairs, None where it takes tiles."""
        if self.walks.pair(cascade) is None:
            return None  # soon said of most
        storage = {t.name: STORAGE[tensors[t.name].dtype] for t in cascade.inputs if not t.param}
        static = static_sizes(cascade, sizes)
        start = self._variant(cascade, storage, static, numbers, sizes, backend)[1].start
        ladder = tilings(cascade, storage, static, backend, self._is_backward(cascade))
        return self.walks.choose(cascade, tensors, numbers, sizes, ladder[start])

    def _tiled(
        self,
        cascade: Cascade,
        tensors: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        backend: Backend,
        walk: str = "",
    ) -> Launch:
        """One kernel, that which suits its masks. One that spills registers is right but slow: the next call gets smaller tiles."""
        storage, static = storage_of(cascade, tensors), static_sizes(cascade, sizes)
        key, suited = self._variant(cascade, storage, static, numbers, sizes, backend)
        variant = replace(suited, walk=walk)
        which = (*key, variant)

        def smaller(built: Built) -> Built | None:
            if built.rung + 1 >= len(tilings(cascade, storage, static, backend, self._is_backward(cascade))):
                return None
            made = self._build(cascade, storage, static, backend, replace(variant, start=built.rung + 1))
            self.built[which] = made
            return made

        if which not in self.built:
            self.built[which] = self._build(cascade, storage, static, backend, variant)
        return Launch(self.built[which], numbers, sizes, smaller)

    def _variant(
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
        if here not in self.variants:
            ladder = tilings(cascade, storage, static, backend, self._is_backward(cascade))
            self.variants[here] = tiles.variant(cascade, ladder, numbers, about, self.strict)
        return key, self.variants[here]

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

    def forward(
        self,
        tensors: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        backend: Backend,
        wanted: tuple[str, ...] = (),
    ) -> dict[str, torch.Tensor]:
        """The outputs, and what the backward for ``wanted`` will read."""
        cascade = self.saving(wanted)
        self.check_ranges(tensors, numbers, sizes)
        outs = self.allocate(cascade, tensors, sizes)
        if any(x.numel() for x in outs.values()):
            self.launch(cascade, {**tensors, **outs}, numbers, sizes, backend)({**tensors, **outs})
        return outs

    def launch(
        self,
        cascade: Cascade,
        tensors: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        backend: Backend,
    ) -> Ready:
        """A forward for tensors like these (outputs included): one kernel, or parts of the keys and their merge if that kept workers idle."""
        if cascade is not self.cascade:
            return self.ready(cascade, tensors, numbers, sizes, backend)
        other = self.heads
        stacked = other.sizes(sizes) if other else None
        if other and stacked:
            return other.program.launch(other.program.cascade, tensors, numbers, stacked, backend)
        count = split.planned(self, sizes, backend.workers(next(iter(tensors.values())).device))
        inparts = split.ready(self, count, tensors, numbers, sizes, backend) if count > 1 else None
        return inparts or self.ready(cascade, tensors, numbers, sizes, backend)

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
        tensors: Mapping[str, torch.Tensor],
        saved: Mapping[str, torch.Tensor],
        gradients: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        backend: Backend,
        wanted: tuple[str, ...],
    ) -> dict[str, torch.Tensor]:
        """The gradient of every tensor in ``wanted``, in its own dtype."""
        env = {**tensors, **saved, **{adjoint(n): g for n, g in gradients.items()}}
        total: dict[str, torch.Tensor] = {}
        steps = list(self.backward_of(wanted).cascades)
        while steps:
            (cascade, parts), *steps = steps
            both = self._both((cascade, parts), steps[0], env, numbers, sizes, backend) if steps else None
            if both:
                run, outs = both
                (other, more), *steps = steps
                run({t.name: env[t.name] for c in (cascade, other) for t in c.inputs if not t.param} | outs)
                done = [(cascade, p) for p in parts] + [(other, p) for p in more]
            else:
                pairs = self._pairs(cascade, parts, env)
                outs = self._allocate_parts(cascade, parts, env, sizes, pairs.parts if pairs else ())
                done = [(cascade, p) for p in parts if p.statement in outs]
                mine = {t.name: env[t.name] for t in cascade.inputs if not t.param} | outs
                if pairs:
                    pairs.by_windows(
                        total,
                        mine,
                        tensors,
                        numbers,
                        sizes,
                        lambda c, x, given, extents: self.ready(c, x, given, extents, backend)(x),
                    )
                elif any(x.numel() for x in outs.values()):
                    self.ready(cascade, mine, numbers, sizes, backend)(mine)
            env |= outs
            for source, part in done:
                accumulate(total, source, *contracted(part, env), tensors, numbers, sizes)
        return _apart({n: total[n].to(tensors[n].dtype) if n in total else torch.zeros_like(tensors[n]) for n in wanted})

    def _pairs(self, cascade: Cascade, parts: Sequence[Gradient], env: Mapping[str, torch.Tensor]) -> Pairs | None:
        """What the cascade gives out pair by pair, but for the gradient of an input that has an entry for every such pair itself."""
        key = (cascade.name, cascade.outs)
        if key not in self.dense:
            dims = {x.target: (*cascade.over, *x.ranks) for x in cascade.body if isinstance(x, Einsum)}
            whole = {p.statement for p in parts if p.index == tuple(map(coordinate, dims[p.statement])) and _only(p, parts)}
            self.dense[key] = Pairs.of(cascade, parts, whole)
        return self.dense[key]

    def _both(
        self,
        rows: Step,
        columns: Step,
        env: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        sizes: Mapping[str, int],
        backend: Backend,
    ) -> tuple[Ready, dict[str, torch.Tensor]] | None:
        """Two steps of a backward as one kernel, and its outputs (those of the first hold zeros, to be added to), where that is possible."""
        (first, parts), (second, more) = rows, columns
        if any(t.name in first.outs for t in second.inputs) or any(self._pairs(*step, env) for step in (rows, columns)):
            return None
        chosen = [self.walked(c, env, numbers, sizes, backend) for c in (first, second)]
        lists, cascades, extents = dict[str, torch.Tensor](), (first, second), dict(sizes)
        if any(chosen):
            turned = self.walks.over_columns(chosen[0], first, second) if chosen[0] and chosen[1] else None
            if turned is None or chosen[0] is None:
                return None
            lists, cascades, extents = dict(turned.tables), (chosen[0].cascade, turned.cascade), {**sizes, **turned.sizes}
        if not backend.merges(math.prod(extent_of(cascades[0], r, extents) for r in cascades[0].over)):
            return None
        a, b = cascades
        known = {**env, **lists}
        given = {t.name: STORAGE[known[t.name].dtype] for c in cascades for t in c.inputs if not t.param}
        static = {**static_sizes(a, extents), **static_sizes(b, extents)}
        small = self._variant(b, given, static_sizes(b, extents), numbers, extents, backend)[1].small
        key = (a.name, a.ranks, a.inputs, small, *kernel_key(b, given, static, backend))
        if key in self.pairs and self.pairs[key] is None:
            return None
        outs = self._allocate_parts(first, parts, env, sizes, added=True) | self._allocate_parts(second, more, env, sizes)
        if not all(x.numel() for x in outs.values()):
            return None
        if key not in self.pairs:
            stored = given | {n: STORAGE[x.dtype] for n, x in outs.items()}
            self.pairs[key] = self._build_both(a, b, stored, static, backend, dict(small))
        built = self.pairs[key]
        if built is None:
            return None
        launch = Launch(built, numbers, extents)
        return (lambda tensors: launch({**tensors, **lists})), outs

    def _build_both(
        self,
        first: Cascade,
        second: Cascade,
        storage: Mapping[str, Storage],
        static: dict[str, int],
        backend: Backend,
        small: Mapping[str, int],
    ) -> Built | None:
        block, step = tilings(second, storage, static, backend, True)[0]
        stored, sizes = sorted(storage.items()), (sorted(static.items()), sorted(small.items()))
        name = cache.key("pair", show(first), show(second), stored, sizes, backend.name, block, step, self.strict)

        def make() -> tuple[Cascade, KernelPlan, str] | None:
            scheduled = [derived.scheduled(c, block, step, self.strict) for c in (first, second)]
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

    def _allocate_parts(
        self,
        cascade: Cascade,
        parts: Sequence[Gradient],
        env: Mapping[str, torch.Tensor],
        sizes: Mapping[str, int],
        apart: Collection[str] = (),
        added: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Outputs of a backward kernel: a gradient that is already whole in its input's dtype, partial sums in accumulation precision.

        ``added``: all in accumulation precision and zero. Without those that are kept ``apart``.
        """
        ranks = {x.target: x.ranks for x in cascade.body if isinstance(x, Einsum)}
        sequence = {r.name for r in cascade.ranks if r.is_sequence}
        tensor = next(iter(env.values()))
        wide = torch.float64 if any(x.dtype == torch.float64 for x in env.values()) else torch.float32
        out = {}
        for name in cascade.outs:
            if name in apart:
                continue
            shape = [extent_of(cascade, r, sizes) for r in (*cascade.over, *ranks[name])]
            mine = [p for p in parts if name in p.statements]
            alone = (
                len(mine) == 1 and mine[0].times is None and _only(mine[0], parts) and list(env[mine[0].input].shape) == shape
            )
            pair = len({*ranks[name]} & sequence) > 1
            make = torch.zeros if pair or added else torch.empty
            out[name] = make(shape, dtype=env[mine[0].input].dtype if alone and not added else wide, device=tensor.device)
        return out


def _only(part: Gradient, parts: Sequence[Gradient]) -> bool:
    """Is this the only part of its input's gradient?"""
    return sum(p.input == part.input for p in parts) == 1


def tilings(
    cascade: Cascade, storage: Mapping[str, Storage], static: Mapping[str, int], backend: Backend, backward: bool
) -> Tilings:
    """The tiles and steps of a cascade on a back end, the best first."""
    widths = [r.size if isinstance(r.size, int) else static[r.size] for r in cascade.ranks if r.kind == "feature"]
    floats = [storage[t.name] for t in cascade.inputs if t.dtype == "float" and not t.param]
    narrow = next((s for s in floats if s in ("bf16", "f16")), floats[0] if floats else "f32")
    return backend.tilings(narrow, max(widths, default=1), backward)


def tiled(
    cascade: Cascade,
    storage: Mapping[str, Storage],
    static: Mapping[str, int],
    backend: Backend,
    ladder: Tilings,
    strict: bool,
    small: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Cascade, KernelPlan, Tilings]:
    """The scheduled cascade and its plan at the first of the tilings that the back end says can be held, and the tilings after it.

    ``small`` gives the most that sizes which are not known are at every launch.
    """
    (block, step), rest = ladder[0], ladder[1:]
    scheduled = derived.scheduled(cascade, block, step, strict)
    plan = backend.prepared(lower(scheduled, storage, static), small)
    if rest and not backend.holds(plan):
        return tiled(cascade, storage, static, backend, rest, strict, small)
    return scheduled, plan, rest


def _apart(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tensor for each: the terms of a sum have one gradient, and an operator must not give out the same memory twice."""
    out: dict[str, torch.Tensor] = {}
    held: set[int] = set()
    for name, x in found.items():
        out[name] = x.clone() if x.data_ptr() in held and x.numel() else x
        held.add(x.data_ptr())
    return out


def static_sizes(cascade: Cascade, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that are part of a kernel's text: those of its features."""
    return {r.size: sizes[r.size] for r in cascade.ranks if r.kind == "feature" and isinstance(r.size, str)}


def kernel_key(
    cascade: Cascade, storage: Mapping[str, Storage], static: Mapping[str, int], backend: Backend
) -> tuple[object, ...]:
    return (cascade.name, cascade.outs, tuple(sorted(storage.items())), tuple(sorted(static.items())), backend.name)


def storage_of(cascade: Cascade, tensors: Mapping[str, torch.Tensor]) -> dict[str, Storage]:
    names = [t.name for t in cascade.inputs if not t.param] + list(cascade.outs)
    return {n: STORAGE[tensors[n].dtype] for n in names}
