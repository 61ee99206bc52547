"""Inputs as integers, or short floats, with scales: a read becomes a product, and a scale without the summed rank leaves the sum.

    in k[B, H, Nk, D]: float                            in k[B, H, Nk, D]: int; in k_scale[B, H, Nk]: float
    in v[B, H, Nk, E]: float                            in v[B, H, Nk, E]: int; in v_scale[H]: float
    qk[i, j] = sum[d] q[b, h, i, d] * k[b, h, j, d]  -> qk_sum[i, j] = sum[d] q[b, h, i, d] * k[b, h, j, d]
                                                        qk[i, j] = qk_sum[i, j] * k_scale[b, h, j]
    o[i, e] = sum[j] p[i, j] * v[b, h, j, e]            o_sum[i, e] = sum[j] p[i, j] * v[b, h, j, e]
                                                        o[i, e] = o_sum[i, e] * v_scale[h]

A scale has some of the axes of its input, named by what they count: ``batch``, ``head``, ``token`` (with which goes the batch) and ``feature``.
Short floats stay ``float``: how an element lies in memory is not the cascade's matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, DType, Einsum, Expr, Flat, Tensor
from einfuse.ir.rewrite import flat, fresh, taken

AXES = ("batch", "head", "token", "feature")
KINDS = {"batch": "batch", "head": "head", "token": "key", "feature": "feature"}


@dataclass(frozen=True, slots=True)
class Quantised:
    """The cascade over what is scaled; ``scales`` are the names of the scales by input, ``kept`` the places of the axes that each has."""

    cascade: Flat
    scales: dict[str, str]
    kept: dict[str, tuple[int, ...]]


def run(cascade: Cascade, inputs: Mapping[str, tuple[str, ...]], floats: bool = False) -> Quantised:
    """The cascade (as built) with integers (or ``floats``) for ``inputs``, each with the axes of its scale.

    Raises SpecError for what cannot be.
    """
    built = flat(cascade, f"{cascade.name} cannot be quantised: it is a scan")
    return _Quantiser(built, inputs, "float" if floats else "int").run()


@dataclass
class _Quantiser:
    c: Flat
    wanted: Mapping[str, tuple[str, ...]]
    dtype: DType
    names: set[str] = field(init=False)
    scales: dict[str, str] = field(init=False, default_factory=dict)
    kept: dict[str, tuple[int, ...]] = field(init=False, default_factory=dict)

    def run(self) -> Quantised:
        self.names = taken(self.c)
        tensors = {t.name: t for t in self.c.inputs}
        for name, axes in self.wanted.items():
            t = tensors.get(name)
            if t is None or t.dtype != "float" or t.param:
                known = ", ".join(t.name for t in self.c.inputs if t.dtype == "float" and not t.param)
                raise SpecError(f"{self.c.name} has no float input {name} to quantise; it has {known}", self.c.loc)
            self.kept[name] = self._places(t, axes)
            self.scales[name] = fresh(f"{name}_scale", self.names)
        inputs: list[Tensor] = []
        for t in self.c.inputs:
            inputs.append(replace(t, dtype=self.dtype) if t.name in self.scales else t)
            if t.name in self.scales:
                inputs.append(Tensor(self.scales[t.name], tuple(t.axes[n] for n in self.kept[t.name]), loc=t.loc))
        body: list[Einsum] = []
        for x in self.c.body:
            body += self._statement(x)
        return Quantised(
            replace(self.c, name=f"{self.c.name}_quantised", inputs=tuple(inputs), body=tuple(body)), self.scales, self.kept
        )

    def _places(self, t: Tensor, axes: tuple[str, ...]) -> tuple[int, ...]:
        """The axes of an input that its scale has."""
        found = {n: self._counts(a) for n, a in enumerate(t.axes)}
        for axis in axes:
            if axis not in AXES or axis not in found.values():
                has = ", ".join(a for a in AXES if a in found.values())
                raise SpecError(f"{t.name} has no axis {axis} that a scale could have; it has {has}", t.loc)
        wanted = {*axes, *(("batch",) if "token" in axes else ())}
        return tuple(n for n, a in found.items() if a in wanted)

    def _counts(self, axis: Expr) -> str:
        """What an axis counts; "" for none of these."""
        named = {str(r.size): r.kind for r in self.c.ranks}
        kinds = {named[n] for n in ex.sizes(axis) if n in named}
        return next((a for a, kind in KINDS.items() if kind in kinds), "")

    def _scale(self, e: Expr) -> Expr:
        return ex.load(self.scales[e.name], *(self._scaled(e.args[n]) for n in self.kept[e.name]))

    def _scaled(self, e: Expr) -> Expr:
        """An expression with every read times its scale."""

        def one(y: Expr) -> Expr | None:
            if y.op != "load" or y.name not in self.scales:
                return None
            return call("*", replace(y, args=tuple(map(self._scaled, y.args))), self._scale(y))

        return ex.substitute(e, one)

    def _statement(self, x: Einsum) -> list[Einsum]:
        """A sum of products without the scales that are the same for all that it adds up, and these behind it."""
        mask = None if x.mask is None else self._scaled(x.mask)
        outside: list[Expr] = []
        parts: list[Expr] = []
        for part in ex.factors(x.map) if x.reducer.sums else (x.map,):
            alone = x.reducer.sums and part.op == "load" and part.name in self.scales
            if alone and not ex.indices(self._scale(part)) & set(x.over):
                outside.append(self._scale(part))
                parts.append(part)
            else:
                parts.append(self._scaled(part))
        if not outside:
            return [replace(x, map=ex.product(*parts), mask=mask)]
        name = fresh(f"{x.target}_sum", self.names)
        inner = replace(x, target=name, map=ex.product(*parts), mask=mask)
        return [inner, replace(x, red=None, over=(), map=ex.product(ex.at(name, x.ranks), *outside), mask=None)]
