"""Faults as kernels have them, planted into what the interpreter computes: does the comparison with the oracle find each?

A fault changes a cascade, its derived backward, or one merge of two tiles, and gives what a kernel with that fault and no rounding would give.
`planted(trial, fault, seed)` is that, or None where the spec has no such place or the change changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch

from einfuse.ir import Cascade, Einsum, Expr, Flat, Fold, SpecError, State, interpret
from einfuse.ir import expr as ex
from einfuse.ir.evaluate import Block, Span
from einfuse.ir.interpreter import Interpreter
from einfuse.ir.passes import canonicalise, differentiate, pipeline, stages
from einfuse.ir.passes.backward import adjoint
from einfuse.ir.rewrite import statements
from einfuse.ir.spaces import inferred
from einfuse.runtime.bound import Results, Trial
from einfuse.runtime.scatter import accumulate, contracted

Plant = Callable[[Trial, random.Random], Results | None]


def planted(trial: Trial, fault: str, seed: int) -> Results | None:
    """What a kernel with the fault gives, in the dtype of the trial; None where it cannot have it, or where that is off by no more than 2
    units in the last place at the scale of the result, which any rounding may be."""
    found = FAULTS[fault](trial, random.Random(seed))
    if found is None or not any(_off(x, trial.truth[what], trial.dtype) > 2 for what, x in found.items()):
        return None
    return {what: x.to(trial.dtype) for what, x in found.items()}


def caught(trial: Trial, found: Results) -> bool:
    return not all(trial.compared(what, x).ok for what, x in found.items())


def _off(x: torch.Tensor, truth: torch.Tensor, dtype: torch.dtype) -> float:
    """The largest difference, in units in the last place at the scale of the truth."""
    finite = torch.isfinite(truth)
    if not finite.any():
        return 0.0
    off, scale = (x - truth)[finite].abs().max().item(), truth[finite].abs().max().item()
    return off / (scale * torch.finfo(dtype).eps) if scale else float("inf") if off else 0.0


# -- a changed cascade -------------------------------------------------------------------------------------------------------------


def _scale(trial: Trial, rng: random.Random) -> Results | None:
    """A product of vectors, scores most often, larger by a thousandth."""
    c = trial.cascade
    products = [x for x in statements(c) if isinstance(x, Einsum) and x.reducer.sums and len(ex.factors(x.map)) > 1]
    features = [x for x in products if not c.rank(x.over[0]).is_sequence]
    return _changed(trial, rng, features, lambda x: replace(x, map=ex.call("*", ex.const(1.001), x.map)))


def _key(trial: Trial, rng: random.Random) -> Results | None:
    """One key that no reduction sees."""
    c = trial.cascade
    reduced = {r for x in c.einsums if x.red for r in x.over if c.rank(r).is_sequence}
    keys = sorted(r for r in reduced if c.rank(r).kind == "key") or sorted(reduced)
    if not keys:
        return None
    rank = rng.choice(keys)
    size = c.rank(rank).size
    extent = trial.given.sizes[size] if isinstance(size, str) else size
    other = ex.call("!=", ex.index(rank), ex.const(rng.randrange(extent)))

    def without(x: Einsum) -> Einsum:
        return replace(x, mask=ex.conjunction(*ex.conjuncts(x.mask), other)) if rank in x.over else x

    body = tuple(without(x) if isinstance(x, Einsum) else x for x in c.body)
    return replace(trial, cascade=replace(c, body=body)).truth


def _window(trial: Trial, rng: random.Random) -> Results | None:
    """A bound on positions off by one."""
    whole = {t.name for t in trial.cascade.inputs if t.dtype == "int"}

    def of_positions(e: Expr) -> bool:
        leaves = [a for a in ex.walk(e) if a.op == "load"]
        return (
            bool(ex.indices(e))
            and all(a.name in whole for a in leaves)
            and not any(isinstance(a.value, float) for a in ex.walk(e))
        )

    def bounds(x: Einsum) -> list[Expr]:
        return [e for e in ex.walk(x.mask or ex.TRUE) if e.op in ("<", "<=", ">", ">=") and of_positions(e)]

    def wider(x: Einsum) -> Einsum:
        chosen = rng.choice(bounds(x))
        one = ex.const(1 if chosen.op[0] == "<" else -1)
        other = ex.call(chosen.op, chosen.args[0], ex.call("+", chosen.args[1], one))
        assert x.mask is not None
        return replace(x, mask=ex.substitute(x.mask, lambda e: other if e == chosen else None))

    return _changed(trial, rng, [x for x in trial.cascade.body if isinstance(x, Einsum) and bounds(x)], wider)


def _heads(trial: Trial, rng: random.Random) -> Results | None:
    """Two heads of an output in each other's place."""
    c = trial.cascade
    heads = [n for n, r in enumerate(c.over) if c.rank(r).kind == "head"]
    outs = [
        n for n, name in enumerate(c.outs) if c.place(name) is None and heads and trial.truth[f"out {n}"].shape[heads[0]] > 1
    ]
    if not outs:
        return None
    out = f"out {rng.choice(outs)}"
    return {out: trial.truth[out].roll(1, heads[0])}


def _changed(trial: Trial, rng: random.Random, some: list[Einsum], change: Callable[[Einsum], Einsum]) -> Results | None:
    if not some:
        return None
    chosen = rng.choice(some)
    new = change(chosen)
    body = tuple(_within(x, chosen, new) for x in trial.cascade.body)
    return replace(trial, cascade=replace(trial.cascade, body=body)).truth


def _within(x: Einsum | Fold, chosen: Einsum, new: Einsum) -> Einsum | Fold:
    if isinstance(x, Fold):
        return replace(x, body=tuple(new if y is chosen else y for y in x.body))
    return new if x is chosen else x


# -- a changed backward ------------------------------------------------------------------------------------------------------------


def _backward(
    trial: Trial,
    change: Callable[[Cascade], Cascade | None],
    stale: Callable[[str, torch.Tensor], torch.Tensor] = lambda n, x: x,
) -> Results | None:
    """The derived gradients, with the first cascade that can be changed; None where there is none, or the spec takes several kernels."""
    if not isinstance(trial.cascade, Flat) or len(stages.run(trial.cascade)) > 1:
        return None
    wanted = [what[2:] for what in trial.truth if what.startswith("d ")]
    canonical = canonicalise.run(trial.cascade)
    try:
        backward = differentiate.run(canonical, wanted)
    except SpecError:
        return None
    given = replace(trial, gradients=False).given
    outs = (*canonical.outs, *(n for n in backward.saved if n not in canonical.outs))
    forward = interpret(replace(canonical, outs=outs), given.inputs, given.sizes)
    directions = trial.directions([forward[n] for n in canonical.outs])
    saved = {n: stale(n, x) for n, x in forward.items()}
    env = {**given.inputs, **saved, **{adjoint(n): g for n, g in zip(canonical.outs, directions, strict=True)}}
    total: dict[str, torch.Tensor] = {}
    done = False
    for cascade, parts in backward.cascades:
        new = None if done else change(cascade)
        done = done or new is not None
        values = interpret(new or cascade, env, given.sizes)
        env |= values
        for part in parts:
            accumulate(total, cascade, *contracted(part, values), given)
    return {f"d {n}": x for n, x in total.items()} if done else None


def _delta(trial: Trial, rng: random.Random) -> Results | None:
    """Without what a normalised weight takes back: the product of outputs and their gradients."""

    def without(c: Cascade) -> Cascade | None:
        body = tuple(replace(x, map=ex.ZERO) if isinstance(x, Einsum) and x.target.startswith("delta") else x for x in c.body)
        return replace(c, body=body) if body != c.body else None

    return _backward(trial, without)


def _sign(trial: Trial, rng: random.Random) -> Results | None:
    """One term of one adjoint with the other sign."""
    at = rng.random()

    def flipped(c: Cascade) -> Cascade | None:
        own = [x for x in c.einsums if x.target.startswith("d_")]
        terms = [(x, e) for x in own for e in _terms(x.map)]
        if not terms:
            return None
        chosen, term = terms[int(at * len(terms))]
        other = ex.call("neg", term)
        new = replace(
            chosen, map=other if chosen.map == term else ex.substitute(chosen.map, lambda e: other if e is term else None)
        )
        return replace(c, body=tuple(new if x is chosen else x for x in c.body))

    return _backward(trial, flipped)


def _terms(e: Expr) -> Iterator[Expr]:
    if e.op in ("+", "-"):
        for a in e.args:
            yield from _terms(a)
    else:
        yield e


def _stale_rows(trial: Trial, rng: random.Random) -> Results | None:
    """A backward that reads a statistic of the row before."""
    c = trial.cascade
    ranks = {x.target: (*c.over, *x.ranks) for x in c.einsums}
    rows = {
        n: next((k for k, r in enumerate(rs) if r not in c.over and c.rank(r).is_sequence), None) for n, rs in ranks.items()
    }
    scalars = sorted(n for n, x in ranks.items() if rows[n] is not None and len(x) == len(c.over) + 1 and n not in c.outs)
    chosen: list[str] = []

    def stale(name: str, x: torch.Tensor) -> torch.Tensor:
        axis = rows.get(name)
        if name in scalars and axis is not None and (not chosen or name in chosen):
            chosen.append(name)
            return x.roll(1, axis)
        return x

    found = _backward(trial, lambda c: c, stale)
    return found if chosen else None


# -- a changed merge of tiles ------------------------------------------------------------------------------------------------------


class _Merging(Interpreter):
    """The interpreter of tiled cascades, with a fault in the merge number ``at``."""

    at = -1
    merges = 0
    kind = "carry"

    def merge(
        self, f: Fold, a: Mapping[str, Block], b: Mapping[str, Block], env: dict[str, Block], span: Span
    ) -> dict[str, Block]:
        mine = self.merges == self.at
        self.merges += 1
        if mine and self.kind == "carry":
            f = replace(f, body=tuple(replace(y, carry=None) if isinstance(y, State) else y for y in f.body))
        out = super().merge(f, a, b, env, span)
        if mine and self.kind == "statistic":
            rows = [y.target for y in f.states if y.reducer.sums and not self._features(y)]
            out |= {n: a[n] for n in rows[:1]}
        return out

    def _features(self, y: State) -> bool:
        return any(not self.cascade.rank(r).is_sequence for r in y.ranks)


def _merged(kind: str) -> Plant:
    def plant(trial: Trial, rng: random.Random) -> Results | None:
        c = trial.cascade
        if not isinstance(c, Flat):
            return None
        given = replace(trial, gradients=False).given
        env = dict(given.inputs)
        done = False
        for stage in stages.run(c):
            tiled = inferred(pipeline.run(stage, 8, 8))
            runs = [
                _Merging(tiled, {t.name: env[t.name] for t in stage.inputs if t.name in env}, dict(given.sizes), torch.float64)
            ]
            found = runs[0].run()
            if runs[0].merges and not done:
                faulty = _Merging(
                    tiled, {t.name: env[t.name] for t in stage.inputs if t.name in env}, dict(given.sizes), torch.float64
                )
                faulty.at, faulty.kind, done = rng.randrange(runs[0].merges), kind, True
                found = faulty.run()
            env |= found
        outs = [env[n] for n in c.outs]
        return {f"out {n}": x for n, x in enumerate(outs) if isinstance(x, torch.Tensor)} if done else None

    return plant


FAULTS: dict[str, Plant] = {
    "scale off by 1e-3": _scale,
    "one key dropped": _key,
    "window off by one": _window,
    "two heads swapped": _heads,
    "delta omitted": _delta,
    "sign of a gradient's term": _sign,
    "statistic of the row before": _stale_rows,
    "carry not applied on one tile": _merged("carry"),
    "statistic without one tile": _merged("statistic"),
}
FINE = {"scale off by 1e-3"}
"""What types of 16 bits cannot tell from rounding."""


def faults(dtype: str) -> list[str]:
    """Those to be found in a dtype."""
    return [f for f in FAULTS if dtype == "float32" or f not in FINE]
