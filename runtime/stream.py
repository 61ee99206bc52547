"""Token by token with constant memory: one step of a recurrence, or of a one-pass attention of a fixed query over keys that keep coming.

A scan is run again from the states it ended with. A one-pass attention has states too, those of its derived fold (for softmax the
maximum, the sum and the weighted sum of values); the states of the new keys are merged with the old ones by the derived merge (Feng et al.,
Attention as an RNN, 2024). Nothing here knows a normaliser.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from einfuse.codegen import lower
from einfuse.ir import Cascade, Expr, Fold, Scalar, SpecError, State, Tensor, const, index, load, pipeline, size
from einfuse.ir.passes import chunk, split
from einfuse.ir.rewrite import expressions, fresh
from einfuse.runtime import binding, cache
from einfuse.runtime.backends import choose
from einfuse.runtime.launch import Built, launch
from einfuse.runtime.program import _extent, _storage, blocks

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention, Output

States = tuple[torch.Tensor, ...]


def advance(
    attention: Attention, state: States | None, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor | Scalar]
) -> tuple[Output, States]:
    """The outputs for the next points, and the states after them; ``state`` None: these are the first."""
    if chunk.scan_of(attention.cascade) is not None:
        return _scanned(attention, state, args, kwargs)
    stream = attention.stream
    if stream is None:
        stream = attention.stream = Stream(attention.cascade, attention.strict)
    tensors, numbers = binding.arguments(attention.cascade, args, kwargs)
    outs, states = stream.step(state, tensors, numbers, attention)
    return (outs[0] if len(outs) == 1 else outs), states


def _positionless(cascade: Cascade, rank: str) -> None:
    """Raises SpecError where the coordinate of ``rank`` is used but to read a tensor at it."""

    def uses(e: Expr, plain: bool = False) -> bool:
        if e.op == "index":
            return e.name == rank and not plain
        return any(uses(a, e.op == "load" and a.op == "index") for a in e.args)

    for x in cascade.body:
        for y in (x, *x.body) if isinstance(x, Fold) else (x,):
            if any(uses(e) for e in expressions(y)):
                raise SpecError(
                    f"{cascade.name} depends on the position along `{rank}`, which a step does not know",
                    y.loc,
                    "give positions as an input, or use a spec without them",
                )


# -- scans -----------------------------------------------------------------------------------------------------------------------


def resumed(cascade: Cascade) -> tuple[Cascade, tuple[State, ...]]:
    """The scan that starts from given states (inputs after all others) and gives out its last ones (after all other outputs)."""
    scan = chunk.scan_of(cascade)
    assert scan is not None, "only a scan is resumed"
    _positionless(cascade, scan.rank)
    states = tuple(y for y in scan.body if isinstance(y, State))
    taken = {t.name for t in cascade.inputs} | {r.name for r in cascade.ranks} | {y.target for y in scan.body}
    extents = {r.name: size(r.size) for r in cascade.ranks}
    names = {y.target: fresh(f"{y.target}_before", taken) for y in states}
    axes = {y.target: (*cascade.over, *y.ranks) for y in states}
    inputs = [Tensor(names[y.target], tuple(extents[r] for r in axes[y.target])) for y in states]
    body = tuple(
        replace(y, init=load(names[y.target], *map(index, axes[y.target]))) if isinstance(y, State) else y for y in scan.body
    )
    outs = tuple(n for n in cascade.outs if n not in names)
    at = cascade.body.index(scan)
    whole = (*cascade.body[:at], replace(scan, body=body), *cascade.body[at + 1 :])
    params = [t for t in cascade.inputs if t.param]
    tensors = [t for t in cascade.inputs if not t.param]
    return replace(cascade, inputs=(*tensors, *inputs, *params), body=whole, outs=(*outs, *names)), states


def _scanned(
    attention: Attention, state: States | None, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor | Scalar]
) -> tuple[Output, States]:
    from einfuse.runtime.attention import Attention as Compiled

    cascade, states = resumed(attention.cascade)
    if attention.resumed is None:
        attention.resumed = Compiled(cascade, attention.backend, attention.strict)
    tensors, numbers = binding.arguments(attention.cascade, args, kwargs)
    if state is None:
        state = _first(attention.cascade, states, tensors)
    if len(state) != len(states):
        raise ValueError(f"{attention.name} has {len(states)} states, found {len(state)}")
    names = [t.name for t in cascade.inputs if not t.param][-len(states) :]
    outs = attention.resumed(**tensors, **dict(zip(names, state, strict=True)), **numbers)
    every = outs if isinstance(outs, tuple) else (outs,)
    named = dict(zip(cascade.outs, every, strict=True))
    public = tuple(named[n] for n in attention.cascade.outs)
    return (public[0] if len(public) == 1 else public), tuple(named[y.target] for y in states)


def _first(cascade: Cascade, states: tuple[State, ...], tensors: Mapping[str, torch.Tensor]) -> States:
    """What the scan starts from."""
    scan = chunk.scan_of(cascade)
    assert scan is not None, "only a scan is resumed"
    sizes: Mapping[str, int] = binding.sizes(cascade, tensors)  # type: ignore[assignment]
    floats = [x for x in tensors.values() if x.is_floating_point()]
    wide = torch.float64 if floats and floats[0].dtype == torch.float64 else torch.float32
    out = []
    for y in (x for x in scan.body if isinstance(x, State)):
        init = y.init or const(0.0)
        if init.op != "const":
            raise SpecError(f"{y.target} starts from an input: pass its first value as the state", y.loc)
        shape = [_extent(cascade, r, sizes) for r in (*cascade.over, *y.ranks)]
        out.append(torch.full(shape, float(init.value or 0.0), dtype=wide, device=floats[0].device))
    return tuple(out)


# -- one-pass attentions ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Stream:
    """The partial and the merging kernel of one attention, made at the first step."""

    cascade: Cascade
    strict: bool
    made: dict[object, tuple[Built, Built]] = field(default_factory=dict)
    halves: dict[tuple[int, int], tuple[Cascade, Cascade, tuple[str, ...]]] = field(default_factory=dict)

    def cascades(self, block: int, step: int) -> tuple[Cascade, Cascade, tuple[str, ...]]:
        """What makes the states of new keys, what merges them with others, and the names of the states in order."""
        if (block, step) in self.halves:
            return self.halves[block, step]
        scheduled = pipeline.run(self.cascade, block, step, self.strict)
        folds = [x for x in scheduled.body if isinstance(x, Fold)]
        if len(folds) != 1 or not split.splittable(scheduled):
            raise SpecError(
                f"{self.cascade.name} needs all keys at once: it has no one-pass form whose states could be carried"
            )
        _positionless(self.cascade, folds[0].rank)
        partial, merging = split.run(scheduled)
        states = tuple(y.target for y in folds[0].body if isinstance(y, State))
        kept = tuple(n for n in self.cascade.outs if n not in states)
        self.halves[block, step] = partial, replace(merging, outs=(*states, *kept)), states
        return self.halves[block, step]

    def step(
        self,
        state: States | None,
        tensors: Mapping[str, torch.Tensor],
        numbers: Mapping[str, Scalar],
        attention: Attention,
    ) -> tuple[States, States]:
        """The outputs after all keys so far, and the states."""
        sizes: dict[str, int] = dict(binding.sizes(self.cascade, tensors))  # type: ignore[arg-type]
        floats = [x for x in tensors.values() if x.is_floating_point()]
        wide = torch.float64 if floats[0].dtype == torch.float64 else torch.float32
        backend = choose(floats[0].device, attention.backend)
        static = {r.size: sizes[r.size] for r in self.cascade.ranks if r.kind == "feature" and isinstance(r.size, str)}
        storage = {n: binding.STORAGE[x.dtype] for n, x in tensors.items()}
        partial, merging, names = self.cascades(*blocks(self.cascade, storage, static, backend, False))
        ranks = {
            y.target: y.ranks
            for x in merging.body
            for y in ((x, *x.body) if isinstance(x, Fold) else (x,))
            if not isinstance(y, Fold)
        }

        def shape(c: Cascade, name: str, counted: Mapping[str, int]) -> list[int]:
            return [_extent(c, r, counted) for r in (*c.over, *ranks[name])]

        one = {**sizes, split.PARTS: 1}
        new = {n: torch.empty(shape(partial, n, one), dtype=wide, device=floats[0].device) for n in names}
        parts = {n: new[n] for n in names}
        held = [t.name for t in merging.inputs[len(self.cascade.inputs) :]]
        axis = len(self.cascade.over)
        outs = {
            n: torch.empty(shape(merging, n, sizes), dtype=wide if n in names else floats[0].dtype, device=floats[0].device)
            for n in merging.outs
        }
        key = (tuple(sorted(storage.items())), tuple(sorted(static.items())), backend.name)
        if key not in self.made:
            both = []
            for c, more in ((partial, parts), (merging, {**dict(zip(held, parts.values(), strict=True)), **outs})):
                plan = lower(c, _storage(c, {**tensors, **more}), static)
                source = backend.emit(plan)
                both.append(Built(c, plan, source, backend.build(plan, source, cache.folder() / backend.name)))
            self.made[key] = (both[0], both[1])
        first, second = self.made[key]
        launch(first, {**tensors, **new}, numbers, one)
        if state is not None:
            if len(state) != len(names):
                raise ValueError(f"{self.cascade.name} has {len(names)} states ({', '.join(names)}), found {len(state)}")
            parts = {n: torch.cat([old.unsqueeze(axis), new[n]], axis) for n, old in zip(names, state, strict=True)}
        counted = {**sizes, split.PARTS: 1 if state is None else 2}
        launch(second, {**tensors, **dict(zip(held, parts.values(), strict=True)), **outs}, numbers, counted)
        return tuple(outs[n] for n in self.cascade.outs), tuple(outs[n] for n in names)
