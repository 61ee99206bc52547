"""Which kernels compute a backward: the adjoint statements in a few cascades, by the rank that owns the gradients they give out.

prepass      adjoints of row scalars that several kernels read, and products that pairs look up
rows         gradients with an entry for every row, and partial sums of those without
columns_j    gradients with an entry for every key
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Tensor
from einfuse.ir.order import by_level
from einfuse.ir.passes import stages
from einfuse.ir.rewrite import reading, with_used_ranks


@dataclass(frozen=True, slots=True)
class Gradient:
    """A part of the gradient of one input: ``d input[index] += value`` at every point of ``ranks`` (the ambient ones included).

    ``times``: another statement and its ranks, whose value is multiplied in; the points are those of both. Such a product of rows of
    features, added up over the rows, is a matrix product: written out it would have an entry for every row and both features.
    """

    input: str
    index: tuple[Expr, ...]
    statement: str
    ranks: tuple[str, ...]
    times: tuple[str, tuple[str, ...]] | None = None

    @property
    def statements(self) -> tuple[str, ...]:
        return (self.statement,) if self.times is None else (self.statement, self.times[0])

    @property
    def turned(self) -> Gradient:
        """The same product, its other factor first: that of the cascade which gives the gradient."""
        assert self.times is not None, f"{self.statement} is no product"
        name, ranks = self.times
        return replace(self, statement=name, ranks=ranks, times=(self.statement, self.ranks))


Step = tuple[Cascade, tuple[Gradient, ...]]
"""A cascade of a backward, and the gradients it gives."""


@dataclass(frozen=True, slots=True)
class Backward:
    """The cascades of a backward pass, in the order they run; ``saved`` are forward statements they read as inputs.

    ``gradients`` of each cascade are its outputs that are (parts of) gradients of forward inputs.
    """

    saved: tuple[str, ...]
    cascades: tuple[Step, ...]


def adjoint(name: str) -> str:
    """The name under which the gradient of an output is passed in."""
    return f"d_{name}"


@dataclass(frozen=True, slots=True)
class Kernels:
    """The statements of a forward cascade and their ``adjoints``; ``columns`` are the folded ranks beside that of the rows.

    ``products`` are the adjoints that pairs look up (`passes.look_up`).
    """

    cascade: Flat
    einsums: Mapping[str, Einsum]
    adjoints: Sequence[Einsum]
    folded: Collection[str]
    columns: Collection[str]
    row: str | None
    products: Collection[str]

    def run(self, gradients: list[tuple[Gradient, str | None]]) -> Backward:
        """The kernels of gradients, each with the rank that owns it (None: that of the rows)."""
        row = self.row
        groups: dict[str | None, list[Gradient]] = {}
        for gradient, owner in gradients:
            groups.setdefault(owner or row, []).append(gradient)
        saved = self._saved()
        forward = [x for x in self.einsums.values() if x not in saved and not set(x.over) & set(self.folded)]
        everything = [*forward, *self.adjoints]
        cascades: list[Step] = []
        given = [*saved]
        shared = self._shared_rows(everything, [n for r, gs in groups.items() if r != row for g in gs for n in g.statements])
        first = [x for x in self.adjoints if x in shared or x.target in self.products]
        if first:
            cascades.append((self._cascade("prepass", everything, given, [x.target for x in first]), ()))
            given += first
        for rank, gs in sorted(groups.items(), key=lambda kv: kv[0] != row):
            name = "rows" if rank == row else f"columns_{rank}"
            outs = list(dict.fromkeys(n for g in gs for n in g.statements))
            parts = stages.run(self._cascade(name, everything, given, outs), canonical=True)
            made = {n: place for place, c in enumerate(parts) for n in c.outs}
            gs = [g if made[g.statement] == max(made[n] for n in g.statements) else g.turned for g in gs]
            cascades += [(c, tuple(g for g in gs if g.statement in c.outs)) for c in parts]
        read = {t.name for c, _ in cascades for t in c.inputs}
        return Backward(tuple(x.target for x in saved if x.target in read), tuple(cascades))

    def _saved(self) -> list[Einsum]:
        """The statements that reduce; in place of one, what a row alone makes of it, as ``max(m, 0)`` of m, where nothing else reads it."""
        rows = [x for x in self.einsums.values() if not set(x.over) & set(self.folded)]
        saved = {x.target: x for x in self.einsums.values() if set(x.over) & set(self.folded)}
        for y in rows:
            (name, *others) = ex.reads(y.map) or ("",)
            if others or name not in saved or y.mask is not None or y.over or y.ranks != saved[name].ranks:
                continue
            if not any(
                name in ex.reads(x.map) | ex.reads(x.mask) for x in (*self.einsums.values(), *self.adjoints) if x is not y
            ):
                saved[name] = y
        return list(saved.values())

    def _shared_rows(self, everything: list[Einsum], outs: list[str]) -> list[Einsum]:
        """The adjoint row scalars that statements over a folded rank read (directly) in order to make ``outs``."""
        needed = _closure(everything, outs)
        adjoints = {x.target: x for x in self.adjoints}
        out: dict[str, Einsum] = {}
        for x in everything:
            if x.target in needed and (set(x.ranks) | set(x.over)) & set(self.folded):
                for name in ex.reads(x.map):
                    y = adjoints.get(name)
                    if (
                        y is not None
                        and not set(y.ranks) & set(self.columns)
                        and [r for r in y.ranks if self.cascade.rank(r).is_sequence] == [self.row]
                        and not self._features(y)
                    ):
                        out[name] = y
        return [x for x in self.adjoints if x.target in out]

    def _features(self, x: Einsum) -> bool:
        return any(not self.cascade.rank(r).is_sequence for r in x.ranks)

    def _cascade(self, suffix: str, body: list[Einsum], given: list[Einsum], outs: list[str]) -> Flat:
        """A cascade with the ``given`` statements as inputs, and of ``body`` only what ``outs`` need."""
        c = self.cascade
        sizes = {r.name: ex.size(r.size) for r in c.ranks}
        adjoints = (Tensor(adjoint(n), tuple(sizes[r] for r in (*c.over, *self.einsums[n].ranks))) for n in c.outs)
        known = {x.target: x for x in (*given, *body)}
        whole = replace(c, inputs=(*c.inputs, *adjoints), body=tuple(_in_order(list(known.values()))))
        return with_used_ranks(reading(whole, dict.fromkeys((x.target for x in given), c.over), outs, f"{c.name}_{suffix}"))


def _closure(body: list[Einsum], outs: list[str]) -> set[str]:
    needed = set(outs)
    for x in reversed(_in_order(body)):
        if x.target in needed:
            needed |= ex.reads(x.map) | ex.reads(x.mask)
    return needed


def _in_order(body: list[Einsum]) -> list[Einsum]:
    """Forward statements and adjoints in dependence order (an adjoint may be made before the forward value it reads is listed)."""
    return by_level(body, lambda x: ex.reads(x.map) | ex.reads(x.mask))
