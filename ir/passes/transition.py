"""What a scan does to the states it starts from, as a scan of its own: its update without what does not depend on them.

    state S[d, e] = keep[i] * S[d, e] + k[i, d] * (v[i, e] - kS[i, e])          state T[d, t] = keep[i] * T[d, t] - k[i, d] * kT[i, t]
    kS[i, e] = sum[d] k[i, d] * S[d, e]                                  ->     kT[i, t] = sum[d] k[i, d] * T[d, t]
                                                                                from 1 where d == t, else 0

The last state is affine in the first one, ``S = M S0 + U``: U is the scan from zero, and the columns of M are the homogeneous scan from those
of the identity. A rank of the state that no statement mixes has no second copy, and one that no coefficient mentions does not stand in M
at all: plain decays give a number, or a vector.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Rank, Scan, State
from einfuse.ir.rewrite import fresh, prune, statements


@dataclass(frozen=True, slots=True)
class Transition:
    """``M`` of one state, the last states of ``cascade``: over the ``ranks`` of the state that it has, then copies of those ``mixed``.

    ``cascade`` is None where M is the identity.
    """

    state: str
    cascade: Cascade | None
    ranks: tuple[str, ...]
    mixed: tuple[str, ...]


def run(c: Scan) -> tuple[Transition, ...]:
    """The transitions of all states of a scan. Raises SpecError where an update is not affine in its own state alone."""
    return tuple(_transition(c, y) for y in c.fold.states)


def _transition(c: Scan, state: State) -> Transition:
    fold = c.fold
    chain = _chain(fold, state)
    states = {y.target for y in fold.states}
    for y in chain:
        others = sorted(n for e in y.expressions for n in ex.reads(e) & states if n != state.target)
        if others:
            raise SpecError(f"{c.name}: the update of {state.target} reads the state {others[0]}", y.loc)
    linear = _Linear(c.name, {y.target for y in chain})
    homogeneous = [linear.statement(y) for y in chain]
    own = {y.target: y.ranks for y in homogeneous}
    mixed = tuple(r for r in state.ranks if not all(_passes(y, r, own) for y in homogeneous))
    kept = tuple(r for r in state.ranks if r in mixed or any(_mentions(y.map, r, own) for y in homogeneous))
    if homogeneous == [replace(state, map=ex.at(state.target, state.ranks))]:
        return Transition(state.target, None, (), ())
    names = {x.target for x in statements(c)} | {t.name for t in c.inputs} | {r.name for r in c.ranks}
    copies = {r: fresh(f"{r}_from", names) for r in mixed}
    gone = set(state.ranks) - {*kept}
    body = {y.target: y for y in fold.einsums if y.target not in own and not ex.reads(y.map) & {*own}}
    columns = tuple(copies.values())
    for y in homogeneous:
        body[y.target] = _column(y, own, gone, columns)  # type: ignore[assignment]  # a state among them
    whole = tuple(body[y.target] for y in fold.body if y.target in body)
    same = [ex.call("==", ex.index(r), ex.index(copies[r])) for r in mixed]
    first = ex.call("select", ex.conjunction(*same) or ex.TRUE, ex.const(1.0), ex.const(0.0))
    started = tuple(replace(y, init=first) if isinstance(y, State) else y for y in whole)
    moved = replace(
        c.with_body((*c.around(fold)[0], replace(fold, body=started))),
        name=f"{c.name}_{state.target}_transition",
        ranks=(*c.ranks, *(Rank(copies[r], "feature", c.rank(r).size) for r in mixed)),
        outs=(state.target,),
        places=(),
    )
    return Transition(state.target, prune(moved), kept, mixed)


def _column(
    y: Einsum | State, own: Mapping[str, tuple[str, ...]], gone: Collection[str], columns: tuple[str, ...]
) -> Einsum | State:
    """A statement without the ranks that are gone, once for each column of the identity."""

    def reads(e: Expr) -> Expr | None:
        if e.op != "load" or e.name not in own:
            return None
        args = [a for r, a in zip(own[e.name], e.args, strict=True) if r not in gone]
        return ex.load(e.name, *args, *map(ex.index, columns))

    return replace(y, ranks=(*(r for r in y.ranks if r not in gone), *columns), map=ex.substitute(y.map, reads))


def _chain(fold: Fold, state: State) -> list[Einsum | State]:
    """The statements from the carried state to the next one, in order: those above it that depend on a state and that it needs, and it."""
    known = {y.target for y in fold.states}
    dependent: list[Einsum] = []
    for y in fold.above(state):
        if any(ex.reads(e) & known for e in y.expressions):
            dependent.append(y)
            known.add(y.target)
    needed, out = set(ex.reads(state.map)), list[Einsum | State]([state])
    for x in reversed(dependent):
        if x.target in needed:
            needed |= ex.reads(x.map) | ex.reads(x.mask)
            out.insert(0, x)
    return out


@dataclass(frozen=True, slots=True)
class _Linear:
    """The part of expressions that is linear in ``names``: what is free of them is left out."""

    cascade: str
    names: set[str]

    def statement(self, y: Einsum | State) -> Einsum | State:
        if not isinstance(y, State) and ((not y.reducer.linear) or (y.mask is not None and self._depends(y.mask))):
            raise SpecError(f"{self.cascade}: {y.target} is not linear in the state", y.loc)
        part = self(y.map, y)
        return replace(y, map=ex.ZERO if part is None else part)

    def _depends(self, e: Expr) -> bool:
        return bool(ex.reads(e) & self.names)

    def __call__(self, e: Expr, y: Einsum | State) -> Expr | None:
        if not self._depends(e):
            return None
        if e.op == "load" and e.name in self.names and not any(self._depends(a) for a in e.args):
            return e
        if e.op in ("+", "-"):
            a, b = (self(x, y) for x in e.args)
            if a is None or b is None:
                return a if b is None else b if e.op == "+" else ex.call("neg", b)
            return ex.call(e.op, a, b)
        if e.op == "neg":
            return ex.call("neg", self(e.args[0], y) or ex.ZERO)
        if e.op in ("*", "/") and not all(map(self._depends, e.args)) and not (e.op == "/" and self._depends(e.args[1])):
            a, b = (self(x, y) if self._depends(x) else x for x in e.args)
            return ex.call(e.op, a or ex.ZERO, b or ex.ZERO)
        if e.op == "select" and not self._depends(e.args[0]):
            a, b = (self(x, y) or ex.const(0.0) for x in e.args[1:])
            return ex.call("select", e.args[0], a, b)
        raise SpecError(f"{self.cascade}: the update of the state is not linear in it (`{e.op}`)", e.loc or y.loc)


def _passes(y: Einsum | State, rank: str, own: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a statement hands every point of the rank on to the same point: it and all that it reads of the state have it."""
    held = [e for e in ex.walk(y.map) if e.op == "load" and e.name in own]
    return rank in y.ranks and all(rank in own[e.name] and e.args[own[e.name].index(rank)] == ex.index(rank) for e in held)


def _mentions(e: Expr, rank: str, own: Collection[str]) -> bool:
    """Whether a coefficient depends on the rank."""
    if e.op == "load" and e.name in own:
        return False
    return e == ex.index(rank) or any(_mentions(a, rank, own) for a in e.args)
