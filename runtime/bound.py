"""How far a right kernel may lie from the truth: a property of the cascade, its inputs and the dtype, not of a machine.

The cascade is interpreted with arithmetic that rounds at random (`einfuse.ir.rounding`), values and gradients, in several draws. A few times
the largest deviation of a draw from the truth, plus 2 units in the last place of the dtype at the scale of the result, is the error allowed.
This is the one place that decides it: `einfuse.verify`, the tests and the benchmarks ask here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from einfuse.ir import Cascade, EinfuseError, Einsum, Expr, Flat, Scalar, interpret
from einfuse.ir import expr as ex
from einfuse.ir.attained import shared
from einfuse.ir.nodes import State
from einfuse.ir.passes import batch, canonicalise, differentiate, stages
from einfuse.ir.rewrite import map_expressions, statements
from einfuse.ir.rounding import Rounding, narrow
from einfuse.runtime import binding
from einfuse.runtime.given import Given

Inputs = Mapping[str, Tensor | Scalar]
Results = dict[str, Tensor]
"""Outputs as ``out 0``, gradients as ``d name``."""
DRAWS = 8
FACTOR = 3.0
"""Of the largest deviation. Chosen from what right kernels do and what planted faults do: benchmarks/bound.py."""
SHARING = 2.0
"""Times what kernels take for the error of a value that they compute again: theirs differ from the exact ones."""
POINTS = 2**23
"""Of the largest statement: as many draws as fit are made at once."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest absolute differences from the truth, where that is finite: what was found and what is allowed."""

    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class Trial:
    """A cascade at inputs in ``dtype``: its exact outputs, its exact gradients along the random direction of ``seed``, and how far a kernel may
    miss them.

    A ``brief`` one makes no more draws than show a result right: what it passes and what it does not are the same, and what it says is
    allowed is the least that is.
    """

    cascade: Cascade
    inputs: Inputs
    dtype: torch.dtype
    gradients: bool = True
    seed: int = 0
    brief: bool = False

    @functools.cached_property
    def truth(self) -> Results:
        """The oracle's results, in float64."""
        return self._exact(self.cascade)

    @functools.cached_property
    def spread(self) -> Mapping[str, float]:
        """The largest deviation of each result over all draws, where it is a number, and of one that shares gradients of maxima.

        Points whose values are nearly that of a maximum share its gradient in kernels, which compute them again, and seldom in draws.
        """
        draws = (self._deviation(count, part) for part, count in enumerate(self._parts()[1:], 1))
        return _most(dict(self._first), self._shared, *draws)

    @functools.cached_property
    def _first(self) -> Mapping[str, float]:
        """The deviation of each result in the first draw."""
        return self._deviation(1, 0)

    def _deviation(self, count: int, part: int) -> dict[str, float]:
        return {what: _largest(draws - self.truth[what]) for what, draws in self._draws(count, part).items()}

    @property
    def _shared(self) -> dict[str, float]:
        """The deviation of each result where nearly equal points share the gradient of a maximum."""
        if not self.gradients or not isinstance(self.cascade, Flat) or not any(x.reducer.extreme for x in self.cascade.body):
            return {}
        found = self._exact(shared(self.cascade, SHARING))
        return {what: _largest(x - self.truth[what]) for what, x in found.items()}

    def deviations(self, what: str) -> Tensor:
        """The largest deviation of each number of a result over all draws."""
        return torch.stack(
            [(self._draws(count, n)[what] - self.truth[what]).abs().amax(0) for n, count in enumerate(self._parts())]
        ).amax(0)

    @property
    def given(self) -> Given:
        """The inputs as those of a call, floats in float64."""
        return _given(self.cascade, self._leaves(torch.float64))

    def run(self, call: Callable[..., Tensor | tuple[Tensor, ...]], device: str = "cpu") -> Results:
        """The results of ``call``, which takes the inputs by name and returns the outputs of the cascade."""
        leaves = self._leaves(self.dtype, device)
        found = call(**leaves)
        outs = found if isinstance(found, tuple) else (found,)
        return _results(outs, leaves, self.directions(outs))

    def compared(self, what: str, found: Tensor) -> Difference:
        """One result beside the truth: off by inf where it is not finite and the truth is, by nan where no truth is a number."""
        truth = self.truth[what]
        finite = torch.isfinite(truth)
        if not finite.any():
            return Difference(math.nan if truth.isnan().any() else 0.0, 0.0)
        off = (found.to(truth) - truth)[finite].abs()
        error = off.max().item() if bool(torch.isfinite(off).all()) else math.inf
        units = 2 * torch.finfo(self.dtype).eps * truth[finite].abs().max().item()
        allowed = units
        if error > allowed or not self.brief:
            allowed = FACTOR * self._first[what] + units
        if error > allowed or not self.brief:
            allowed = FACTOR * self.spread[what] + units
        return Difference(error, allowed)

    def _parts(self) -> list[int]:
        """How many draws are made at once, time after time: one, which most results need no more than, then as many as fit."""
        sizes = self.given.sizes
        extent = {r.name: sizes[r.size] if isinstance(r.size, str) else r.size for r in self.cascade.ranks}
        largest = max(math.prod(extent[r] for r in self._ranks(x)) for x in statements(self.cascade))
        most = max(1, min(DRAWS, POINTS // max(1, largest)))
        return [1, *(min(most, DRAWS - k) for k in range(1, DRAWS, most))]

    def _ranks(self, x: Einsum | State) -> set[str]:
        return {*self.cascade.over, *x.ranks, *x.over}

    @functools.cached_property
    def _steady(self) -> Cascade:
        """The cascade without the derivatives of maxima that only keep numbers in range, where no kernel takes them: they are exactly 0, and to
        take them makes up for errors of all the others. A derivative that is 0 and is taken (of a maximum that is added to all scores of a
        softmax) has the errors of its sums."""
        cascade = self.cascade
        gradients = [what for what in self.truth if what.startswith("d ")]
        scale = max((_largest(self.truth[what]) for what in gradients), default=0.0)
        for name in sorted(_still(cascade)) if gradients else []:
            without = _stopped(cascade, name)
            found = self._exact(without)
            if all(_largest(found[what] - self.truth[what]) <= 1e-9 * scale for what in gradients):
                cascade = without
        return cascade

    def _exact(self, cascade: Cascade) -> Results:
        leaves = self._leaves(torch.float64)
        outs = _interpreted(cascade, leaves)
        return _results(outs, leaves, self.directions(outs))

    def _draws(self, count: int, part: int) -> Results:
        """The results of ``count`` evaluations that round at random, along a new first axis."""
        leaves = self._leaves(torch.float64)
        floats = {n: x for n, x in leaves.items() if isinstance(x, Tensor) and x.is_floating_point()}
        several = {n: narrow(x.detach().repeat(count, *[1] * x.ndim).requires_grad_(self.gradients)) for n, x in floats.items()}
        leaves |= several
        cascade = batch.run(self._steady, floats)
        with Rounding(self.dtype, self.seed, part, 0) as forward:
            outs = _interpreted(cascade, leaves)
        again = outs
        if self.gradients:
            with Rounding(self.dtype, self.seed, part, 2, sums=forward.sums):
                again = _interpreted(cascade, leaves)
        directions = [d.expand(count, *d.shape) for d in self.directions([o[0] for o in outs])]
        with Rounding(self.dtype, self.seed, part, 1, backward=True):
            return _results(again, leaves, directions) | _values(outs)

    def _leaves(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor | Scalar]:
        """The inputs on a device, floats in ``dtype``; what gradients are taken of, if they are."""
        on = {n: x.detach().to(device) if isinstance(x, Tensor) else x for n, x in self.inputs.items()}
        return {
            n: x.to(dtype).requires_grad_(self.gradients) if isinstance(x, Tensor) and x.is_floating_point() else x
            for n, x in on.items()
        }

    def directions(self, outs: Sequence[Tensor]) -> list[Tensor]:
        """A random direction for every output, of numbers that the dtype holds."""
        generator = torch.Generator().manual_seed(self.seed)
        return [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(self.dtype).to(o) for o in outs]


def _given(cascade: Cascade, inputs: Inputs) -> Given:
    return Given.of(cascade, *binding.arguments(cascade, (), inputs))


def _interpreted(cascade: Cascade, inputs: Inputs) -> list[Tensor]:
    given = _given(cascade, inputs)
    found = interpret(cascade, given.inputs, given.sizes)
    return [found[n] for n in cascade.outs]


def _still(cascade: Cascade) -> frozenset[str]:
    """The maxima whose derivatives kernels may not take: of a scan, whose states are not looked into, any."""
    extremes = frozenset(x.target for x in statements(cascade) if x.reducer.extreme)
    if not extremes or not isinstance(cascade, Flat):
        return extremes
    try:
        return frozenset[str]().union(*(differentiate.invariant(canonicalise.run(c)) for c in stages.run(cascade)))
    except EinfuseError:  # no kernels
        return frozenset()


def _stopped(cascade: Cascade, name: str) -> Cascade:
    """The cascade with no derivative through what reads this statement."""

    def stopped(e: Expr) -> Expr | None:
        return ex.call("stop", e) if e.op == "load" and e.name == name else None

    return map_expressions(cascade, lambda e: ex.substitute(e, stopped))


def _largest(x: Tensor) -> float:
    """The largest magnitude among what is finite."""
    return x.abs().where(torch.isfinite(x), 0.0).amax().item() if x.numel() else 0.0


def _most(*deviations: dict[str, float]) -> dict[str, float]:
    """The largest deviation of each result."""
    return {what: max(d.get(what, 0.0) for d in deviations) for what in deviations[0]}


def _values(outs: Sequence[Tensor]) -> Results:
    return {f"out {n}": o.detach() for n, o in enumerate(outs)}


def _results(outs: Sequence[Tensor], leaves: Inputs, directions: Sequence[Tensor]) -> Results:
    """Outputs, and gradients along the directions."""
    found = _values(outs)
    wanted = {n: x for n, x in leaves.items() if isinstance(x, Tensor) and x.requires_grad}
    moving = [(o, d) for o, d in zip(outs, directions, strict=True) if o.requires_grad]  # a count has no gradient
    if wanted and moving:
        gradients = torch.autograd.grad(
            [o for o, _ in moving], list(wanted.values()), [d for _, d in moving], allow_unused=True
        )
        found |= {f"d {n}": g for n, g in zip(wanted, gradients, strict=True) if g is not None}
    return found | {f"d {n}": torch.zeros_like(x) for n, x in wanted.items() if f"d {n}" not in found}
