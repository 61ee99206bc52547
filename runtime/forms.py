"""The two forms of an attention whose weights factor, and the choice between them at a call.

``quadratic`` computes every weight; ``linear`` sums the keys into a state first (`ir.passes.reassociate`). ``auto`` takes the one that the
model of `runtime.crossover` says is faster at the shapes of the call; ``$EINFUSE_FORM`` overrides it where both forms fit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import torch

from einfuse.ir import Cascade, SpecError
from einfuse.ir.cut import NotFactorableError
from einfuse.ir.passes import reassociate
from einfuse.ir.passes.factorisation import Factorisation, find
from einfuse.ir.text import parse
from einfuse.runtime import crossover
from einfuse.runtime.apart import apart
from einfuse.runtime.binding import extent_of
from einfuse.runtime.capture import capturing
from einfuse.runtime.crossover import Estimate, Setting, Speed
from einfuse.runtime.recent import MOST, Recent

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention

V = TypeVar("V")
FormName = Literal["auto", "quadratic", "linear"]
FORM = "EINFUSE_FORM"
"""The variable that overrides the choice."""
STATE = 2**15
"""Numbers that the states of a scan may hold for one program of a GPU: they stay on chip."""
FEW = 32
"""Keys that no state is worth summing for; neither are a quarter as many as there are features. (No plan is made to find that out.)"""
FEATURES = 2**13
"""Features beyond which there is no linear form: no sequence is long enough for it, and no kernel holds a block of them."""

_HEAD = """cascade reference over b, h {
  rank b: batch = B
  rank h: head = H
  rank i: query = Nq
  rank j: key = Nk
  rank d: feature = D
  rank e: feature = E
  in q[B, H, Nq, D]: float
  in k[B, H, Nk, D]: float
  in v[B, H, Nk, E]: float
  s[i, j] = sum[d] q[b, h, i, d] * k[b, h, j, d]"""
_POLYNOMIAL = "(1 + s[i, j] + s[i, j] * s[i, j])"


def _reference(weight: str, mask: str = "") -> str:
    """Normalised weights of this form: what most attentions with a linear form are."""
    sums = f"p[i, e] = sum[j] {weight} * v[b, h, j, e]\n  l[i] = sum[j] {weight}"
    return f"{mask}\n  {sums}\n  o[i, e] = p[i, e] / l[i]\n  out o\n}}"


_CAUSAL = " where j <= i"
_REFERENCES = {
    "quadratic": _reference(_POLYNOMIAL),
    "sums": _reference("s[i, j]"),
    "flat sums": _reference(_POLYNOMIAL),
    "scan": _reference("s[i, j]", _CAUSAL),
    "flat scan": _reference(_POLYNOMIAL, _CAUSAL),
}


def known_form(name: str) -> FormName:
    """The name of a form. Raises ValueError for another."""
    if name not in get_args(FormName):
        raise ValueError(f"the form is one of {', '.join(get_args(FormName))}, found {name!r}")
    return name  # type: ignore[return-value]  # checked


@dataclass(slots=True)
class Forms:
    """What is known of the forms of one attention; the linear one is built for the widths it is asked for."""

    quadratic: Attention
    found: Factorisation | None = None
    obstacle: str | None = None
    linears: dict[tuple[int, ...], Attention] = field(default_factory=dict)  # torch.compile looks into these two: no `Recent`
    ranks: dict[tuple[int, ...], int] = field(default_factory=dict)
    choices: Recent[tuple[object, ...], FormName] = field(default_factory=Recent)

    def __post_init__(self) -> None:
        try:
            self.found = find(self.quadratic.cascade)
        except NotFactorableError as reason:
            self.obstacle = str(reason)

    def __reduce__(self) -> tuple[object, ...]:
        return getattr, (self.quadratic, "forms")  # found again from what defines them

    def fits(self, sizes: Mapping[str, int]) -> str | None:
        """Why the linear form does not take these sizes; None where it does."""
        if self.found is None:
            return self.obstacle
        c = self.found.cascade
        rows, columns = (extent_of(c, r, sizes) for r in (self.found.row, self.found.column))
        if self.found.causal and rows != columns:
            return f"a scan goes along queries and keys together, found {rows} queries and {columns} keys"
        return self.crowd(sizes)

    def crowd(self, sizes: Mapping[str, int]) -> str | None:
        """Why there is no linear form at these widths, whatever the lengths: too high a rank of the weights. None where there is one."""
        assert self.found is not None, "asked of weights that factor"
        if not self.found.widths:  # a feature of the keys for every feature of the state, as wide as they are
            return None
        rank = self._rank(sizes)
        return (
            f"its weights have {self.found.show()} = {rank} features, and a state holds at most {FEATURES}"
            if rank > FEATURES
            else None
        )

    def _rank(self, sizes: Mapping[str, int]) -> int:
        """The rank of the weights, worked out once for these widths."""
        assert self.found is not None, "asked of weights that factor"
        names = sorted(
            {r.size for r in self.found.cascade.ranks if r.kind == "feature" and isinstance(r.size, str)} & sizes.keys()
        )
        return _ranked(self, {n: sizes[n] for n in names})

    def _widths(self, sizes: Mapping[str, int]) -> dict[str, int]:
        """The widths that the linear form is written for."""
        assert self.found is not None, "asked of weights that factor"
        return {n: sizes[n] for n in sorted(self.found.widths)}

    def linear(self, sizes: Mapping[str, int]) -> Attention:
        """The linear form for these sizes. Raises SpecError where there is none."""
        reason = self.fits(sizes)
        if reason is not None or self.found is None:
            raise SpecError(f"{self.quadratic.name} has no linear form: {reason}", self.quadratic.cascade.loc)
        return self.build(sizes)

    def build(self, widths: Mapping[str, int], points: bool = False) -> Attention:
        """The linear form for these widths (those that it is written for), built once; ``points``: a scan that goes point by point.

        Raises SpecError where it would have more than `FEATURES` features.
        """
        assert self.found is not None, "only a linear form is built"
        if (reason := self.crowd(widths)) is not None:
            raise SpecError(f"{self.quadratic.name} has no linear form: {reason}", self.quadratic.cascade.loc)
        mine = self._widths(widths)
        _built(self, points, mine)  # before `linears` is read: a trace keeps what it has seen of it
        return self.linears[points, *mine.values()]

    def decoding(self, sizes: Mapping[str, int], dtype: torch.dtype) -> int | None:
        """The number of keys from which on a step of the scan moves fewer bytes than a query reads of keys; None where there is no scan."""
        if self.found is None or not self.found.causal:
            return None
        c = self.found.cascade
        states = self._rank(sizes) * sum(_product(c, s.einsum.ranks, sizes, {self.found.row}) for s in self.found.sums)
        return math.ceil(2 * 4 * states / (self.found.numbers(sizes) * dtype.itemsize))

    # -- the choice ----------------------------------------------------------------------------------------------------------------

    def choose(self, sizes: Mapping[str, int], x: torch.Tensor, training: bool) -> FormName:
        """The form for a call with these sizes and tensors like ``x``; ``training`` where gradients follow."""
        if self.found is None or x.device.type == "meta" or not all(sizes.values()) or self.fits(sizes) is not None:
            return "quadratic"
        asked = known_form(os.environ.get(FORM, "auto"))
        if asked != "auto":
            return asked
        key = (*sorted(sizes.items()), x.dtype, x.device, training)
        return self.choices.made(key, lambda: self._choose(sizes, x, training))

    def _choose(self, sizes: Mapping[str, int], x: torch.Tensor, training: bool) -> FormName:
        assert self.found is not None, "asked of a linear form"
        keys = extent_of(self.found.cascade, self.found.column, sizes)
        if keys <= max(FEW, self._rank(sizes) // 4) or self._too_large(sizes, x):
            return "quadratic"
        found = self.estimate(sizes, x.dtype, x.device, training)
        if found.near and not capturing():  # where no kernel can be timed
            for kind in self.unmeasured(sizes, x.dtype, x.device, training):
                self.calibrate(kind, sizes, x.dtype, x.device, training)
            found = self.estimate(sizes, x.dtype, x.device, training)
        return "linear" if found.linear < found.quadratic else "quadratic"

    def unmeasured(self, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, training: bool) -> list[str]:
        """The kinds of the two forms whose rate on this device stands in."""
        assert self.found is not None, "only two forms are compared"
        setting = self._setting(sizes, dtype, device, training)
        return [kind for kind in ("quadratic", self.found.kind) if crossover.known(kind, setting) is None]

    def _setting(self, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, training: bool) -> Setting:
        """What the rates of a call depend on: beside the rest, the width of its widest contraction."""
        assert self.found is not None, "only two forms are compared"
        ranks = {r for s in self.found.sums for t in s.terms for _, r in t.bound}
        width = max((extent_of(self.found.cascade, r, sizes) for r in ranks), default=1)
        return Setting.of(torch.empty(0, dtype=dtype, device=device), training, width)

    def _too_large(self, sizes: Mapping[str, int], x: torch.Tensor) -> bool:
        """Would the state of a scan be more than a GPU's program has room for?"""
        assert self.found is not None, "asked of a linear form"
        if not self.found.causal or x.device.type == "cpu":
            return False
        c = self.found.cascade
        values = max(_product(c, s.einsum.ranks, sizes, {self.found.row}) for s in self.found.sums)
        return self._rank(sizes) * values > STATE

    def estimate(self, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, training: bool) -> Estimate:
        """What the model says at these sizes."""
        assert self.found is not None, "only two forms are compared"
        setting = self._setting(sizes, dtype, device, training)
        taken = []
        for a, kind in ((self.quadratic, "quadratic"), (self.linear(sizes), self.found.kind)):
            plans = a.work_plans(self._backend(device), dtype, training, sizes)
            work = crossover.work(plans, sizes, 0.5 if self.found.causal else 1.0)
            taken.append(crossover.speed(kind, setting, device).seconds(len(plans), work))
        return Estimate(*taken)

    def _backend(self, device: torch.device) -> Literal["cpu", "triton"]:
        return "cpu" if device.type == "cpu" else "triton"

    def crossover(self, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, training: bool = False) -> int:
        """The length from which on the linear form is faster, with as many keys as queries and the other sizes as they are."""
        assert self.found is not None, "only two forms cross"
        names = {self.found.cascade.rank(r).size for r in (self.found.row, self.found.column)}

        def better(n: int) -> bool:
            at = {**sizes, **{str(s): n for s in names}}
            found = self.estimate(at, dtype, device, training)
            return found.linear < found.quadratic

        high = 16
        while not better(high) and high < 2**24:
            high *= 2
        low = high // 2
        while high - low > max(1, low // 64):
            middle = (low + high) // 2
            low, high = (low, middle) if better(middle) else (middle, high)
        return high

    def calibrate(self, kind: str, sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device, training: bool) -> Speed:
        """Measures the speed of one kind at the width of ``sizes``, and keeps it."""
        from einfuse.runtime.attention import Attention

        setting = self._setting(sizes, dtype, device, training)
        heads, lengths = (torch.get_num_threads(), (64, 2048)) if device.type == "cpu" else (64, (256, 4096))
        whole = Attention(parse(_HEAD + _REFERENCES[kind]), self.quadratic.backend, form="quadratic")
        widths = {"D": setting.width, "E": setting.width}
        run = whole if kind == "quadratic" else whole.forms.build(widths)
        plans = run.work_plans(self._backend(device), dtype, training, widths)

        def measured(n: int) -> tuple[float, float]:
            shape = (1, heads, n, setting.width)  # of positive numbers, so that no sum of weights is 0
            leaves = [torch.rand(shape, dtype=dtype, device=device).requires_grad_(training) for _ in range(3)]

            def once() -> None:
                out = run(*leaves)
                assert isinstance(out, torch.Tensor), "the reference has one output"
                if training:
                    torch.autograd.grad(out, leaves, torch.ones_like(out))

            work = crossover.work(plans, {"B": 1, "H": heads, "Nq": n, "Nk": n, **widths}, 0.5 if "scan" in kind else 1.0)
            with torch.set_grad_enabled(training):
                return work, crossover.timed(once, device)

        found = Speed.of(len(plans), *map(measured, lengths))
        crossover.keep(kind, setting, found)
        return found


def _ranked(forms: Forms, widths: dict[str, int]) -> int:
    """The rank of the weights, worked out once for these widths. torch.compile calls this and the next, and does not trace them."""
    assert forms.found is not None, "asked of weights that factor"
    key = tuple(widths.values())
    if key not in forms.ranks:
        _make_room(forms.ranks)
        forms.ranks[key] = forms.found.rank(widths)
    return forms.ranks[key]


def _built(forms: Forms, points: bool, widths: dict[str, int]) -> bool:
    """Leaves the linear form for these widths at the forms."""
    from einfuse.runtime.attention import Attention

    key = (points, *widths.values())
    if key not in forms.linears:
        whole = forms.quadratic
        _make_room(forms.linears)
        forms.linears[key] = apart(
            lambda: Attention(reassociate.run(whole.cascade, widths, points), whole.backend, whole.strict, form="quadratic")
        )
    return True


def _make_room(held: dict[tuple[int, ...], V]) -> None:
    """Forgets the oldest value where there are as many as a `Recent` holds."""
    while len(held) >= MOST:
        held.pop(next(iter(held)), None)


for _constant in (_ranked, _built):
    vars(_constant)["_dynamo_marked_constant"] = True  # as `torch.compiler.assume_constant_result`, which imports the compiler


def _product(c: Cascade, ranks: tuple[str, ...], sizes: Mapping[str, int], without: set[str]) -> int:
    return math.prod(extent_of(c, r, sizes) for r in ranks if r not in without)
