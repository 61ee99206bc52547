"""All reductions over a rank become folds, as few as the algebra allows: one per pass.

    m[i] = max[j] s[i, j] where j <= i                             fold j where j <= i {
    l[i] = sum[j] exp(s[i, j] - m[i]) where j <= i          ->       state m[i] = max s[i, j]
    o[i, e] = sum[j] exp(s[i, j] - m[i]) / l[i] * v[j, e]            state l[i] = sum exp(s[i, j] - m[i])
                                                                       carry l[i] * exp(m[i] - m'[i])
                                                                     state o_0[i, e] = sum exp(s[i, j] - m[i]) * v[j, e]
                                                                       carry o_0[i, e] * exp(m[i] - m'[i])
                                                                   }
                                                                   o[i, e] = select(o_0[i, e] == 0, 0, o_0[i, e] / l[i])

Every read of an earlier statistic ``d`` by a later reduction is *deferred* (a factor free of j leaves the sum, sums are divisors),
*carried* (the partial sum is re-based when d moves; order statistics exist only for range), carried as a *tower* of derivatives
(polynomials of a running mean), or *cut*: the reduction then needs d complete, which is one more pass. No normaliser is known by
name; `ir.separability` decides by rank and constructs by algebra.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import assert_never

from einfuse.ir import expr as ex
from einfuse.ir.derivation import Accumulator, Derivation, derive
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Fold, State, Statement
from einfuse.ir.order import by_level
from einfuse.ir.passes.canonicalise import fold_ranks
from einfuse.ir.rewrite import fresh


def run(cascade: Flat, strict: bool = False) -> Cascade:
    """Requires a canonical cascade. ``strict`` refuses carries that were sampled but not proven (SpecError)."""
    fused: Cascade = cascade
    for derivation, after in steps(cascade):
        _proven(derivation, strict)
        fused = after
    return fused


def steps(cascade: Flat) -> Iterator[tuple[Derivation, Cascade]]:
    """How every folded rank of a canonical cascade is fused, and the cascade then: each rank sees the folds over those before it."""
    fused: Cascade = cascade
    folded = fold_ranks(cascade)
    for x in cascade.einsums:
        ranks = [r for r in x.ranks if cascade.rank(r).is_sequence and r not in cascade.over]
        if x.target in cascade.outs and len(ranks) > 2 and len(set(ranks) & set(folded)) > 1:
            raise SpecError(
                f"the output {x.target} has points along {', '.join(ranks)}, and a kernel has rows and one loop at a time",
                x.loc,
                "reduce one of these ranks, or give it out over two of them",
            )
    for rank in folded:
        found = derive(fused, rank)
        fused = _Surgeon(fused, found).run()
        yield found, fused


def _proven(derivation: Derivation, strict: bool) -> None:
    sampled = next((d for d in derivation.decisions if d.proof == "sampled"), None)
    if strict and sampled is not None:
        raise SpecError(
            f"the {sampled.how} of {sampled.reader} for {sampled.statistic} ({sampled.detail}) is checked by sampling, not proven",
            hint="write the normaliser so that its correction simplifies, or do not ask for strict",
        )


class _Surgeon:
    """Rebuilds the body: what folds need, then each fold with its epilogue, then the rest, in dependence order."""

    def __init__(self, cascade: Cascade, derivation: Derivation) -> None:
        self.cascade, self.derivation, self.rank = cascade, derivation, derivation.rank
        self.taken = {x.target for x in cascade.einsums} | {t.name for t in cascade.inputs}
        self.einsums = {x.target: x for x in cascade.einsums}
        self.mine = set(derivation.level)
        self.columns = {x.target for x in cascade.einsums if self.rank in x.ranks}

    def run(self) -> Cascade:
        pending: Sequence[Statement] = cascade_rest(self.cascade, self.mine)
        done = {t.name for t in self.cascade.inputs}
        body: list[Statement] = []

        def moved(waiting: Sequence[Statement]) -> Sequence[Statement]:
            """Moves every statement whose reads are there; gives those that stay."""
            left: list[Statement] = []
            for x in waiting:
                if _all_reads(x) <= done and not self._column(x):
                    body.append(x)
                    done.update(_defined(x))
                else:
                    left.append(x)
            return left if len(left) == len(waiting) else moved(left)

        wanted = [self.einsums[n] for n in self.einsums if n in self.columns & {*self.cascade.outs} - self.mine]
        dense = {x.target: self._dense_level(x) for x in wanted}
        for level in range(1, max([self.derivation.passes, *dense.values()]) + 1):
            pending = moved(pending)
            names = [n for n in self.derivation.level if self.derivation.level[n] == level]
            emitted = [n for n in dense if dense[n] == level]
            masks = dict.fromkeys(self.einsums[n].mask for n in (*names, *emitted) if self.einsums[n].red or n in dense)
            late: Sequence[Statement] = []  # what multiplies a sum may come out of a fold with another mask
            for mask in masks:
                mine = [n for n in names if not self.einsums[n].red or self.einsums[n].mask == mask]
                fold, epilogue = self._fold(mine, mask, [n for n in emitted if self.einsums[n].mask == mask])
                body.append(fold)
                done |= {y.target for y in fold.states}
                late = moved([x for x in dict.fromkeys((*epilogue, *late)) if not _defined(x) <= done])
            pending = moved([*late, *pending])
        pending = moved(pending)
        assert not [x for x in pending if not self._column(x)], f"statements without their operands: {pending}"
        return self.cascade.with_body(body)

    def _dense_level(self, x: Einsum) -> int:
        """The pass in which an output over the folded rank can be made: after all statistics that it reads."""
        needed = _all_reads(x)
        for y in reversed(self.einsums.values()):
            if y.target in needed and y.target not in self.mine:
                needed |= ex.reads(y.map)
        return 1 + max((self.derivation.level[n] for n in needed if n in self.mine), default=0)

    def _column(self, x: Statement) -> bool:
        return not _defined(x).isdisjoint(self.columns)

    def _fold(self, names: list[str], mask: Expr | None, emitted: list[str]) -> tuple[Fold, list[Einsum]]:
        states: list[Einsum | State] = []
        after: dict[str, Einsum] = {}  # row scalars and the values of reductions, each from the states
        for name in names:
            x = self.einsums[name]
            if not x.red:
                after[name] = replace(x, mask=None)
            else:
                new, value = self._states(x)
                states += new
                if value is None:
                    continue
                after[name] = Einsum(name, x.ranks, None, (), value, None, x.loc)
            states.append(after[name])
        states = _without_unread(states, set(after))
        outs = [self.einsums[n] for n in emitted]
        local = self._block_local([*states, *outs])
        wanted = self._wanted_after(names, after)
        epilogue = [x for n, x in after.items() if n in wanted]
        body = (*local, *states, *(x for x in outs if x not in local))
        return Fold(self.rank, self._own_names(body, {x.target for x in local} - {*emitted}), mask), by_level(
            epilogue, lambda x: ex.reads(x.map)
        )

    def _own_names(self, body: tuple[Einsum | State, ...], local: set[str]) -> tuple[Einsum | State, ...]:
        """What another fold gives out under a mask of its own is computed here again, by another name."""
        names = {n: fresh(n, self.taken) for n in sorted(local & set(self.cascade.outs))}
        if not names:
            return body

        def renamed(e: Expr) -> Expr:
            return ex.substitute(e, lambda x: replace(x, value=names[x.name]) if x.op == "load" and x.name in names else None)

        out: list[Einsum | State] = []
        for y in body:
            y = replace(y, target=names.get(y.target, y.target), map=renamed(y.map))
            out.append(replace(y, carry=renamed(y.carry)) if isinstance(y, State) and y.carry is not None else y)
        return tuple(out)

    def _wanted_after(self, names: list[str], after: dict[str, Einsum]) -> set[str]:
        """What is read once the fold is done: by other statements, by later folds, and by what those need."""
        wanted = {n for x in cascade_rest(self.cascade, self.mine) for n in _all_reads(x)} | set(self.cascade.outs)
        this = max((self.derivation.level[n] for n in names), default=0)
        wanted |= {n for other, level in self.derivation.level.items() if level > this for n in self._needs(other)}
        wanted |= {n for n in after if self.einsums[n].red}
        for name, x in reversed(after.items()):
            if name in wanted:
                wanted |= ex.reads(x.map)
        return wanted

    def _needs(self, name: str) -> set[str]:
        return ex.reads(self.einsums[name].map)

    def _block_local(self, states: list[Einsum | State]) -> list[Einsum | State]:
        """The statements over the folded rank that the states read, in order."""
        needed = {n for y in states for n in (ex.reads(y.map) if isinstance(y, State) else _all_reads(y))}
        out: list[Einsum | State] = []
        for x in reversed([x for x in self.einsums.values() if self.rank in x.ranks]):
            if x.target in needed:
                out.append(x)
                needed |= _all_reads(x)
        return out[::-1]

    def _states(self, x: Einsum) -> tuple[list[State], Expr | None]:
        """The states of one reduction, and its value from them where that is not simply the state of its name."""
        accumulators = self.derivation.accumulators[x.target]
        simple = len(accumulators) == 1 and accumulators[0].post == ex.ONE
        states: list[State] = []
        total: Expr | None = None
        assert x.red is not None
        for acc in accumulators:
            name = x.target if simple else fresh(f"{x.target}_0", self.taken)
            states += (
                self._tower(name, x, acc)
                if acc.tower
                else [State(name, x.ranks, x.red, acc.map, self._carried(name, x, acc), loc=x.loc)]
            )
            if not simple:
                value = ex.at(name, x.ranks)
                empty = ex.call("==", value, ex.const(0.0))  # a sum over nothing is 0 whatever the factor
                term = (
                    _times(value, acc.post)
                    if _finite(acc.post)
                    else ex.call("select", empty, ex.const(0.0), _times(value, acc.post))
                )
                total = term if total is None else ex.call("+", total, term)
        return states, total

    def _carried(self, name: str, x: Einsum, acc: Accumulator) -> Expr | None:
        out = ex.at(name, x.ranks)
        for how, correction in acc.carry:
            out = ex.call(how, out, correction)
        return out if acc.carry else None

    def _tower(self, name: str, x: Einsum, acc: Accumulator) -> list[State]:
        """The map and its derivatives in d, re-based together: A_k(d') = sum over i >= k of (d' - d)^(i-k) / (i-k)! A_i(d)."""
        assert acc.tower is not None
        assert x.red is not None
        statistic, derivatives = acc.tower
        names = [name, *(fresh(f"{name}_d{k}", self.taken) for k in range(1, len(derivatives) + 1))]
        move = ex.call("-", replace(statistic, op="new"), statistic)
        states = []
        for k, g in enumerate((acc.map, *derivatives)):
            carry = self._carried(names[k], x, acc) or ex.at(names[k], x.ranks)
            for i in range(k + 1, len(names)):
                term = ex.product(ex.const(1 / math.factorial(i - k)), *[move] * (i - k), ex.at(names[i], x.ranks))
                carry = ex.call("+", carry, term)
            states.append(State(names[k], x.ranks, x.red, g, carry if k < len(derivatives) else None, loc=x.loc))
        return states


def _without_unread(states: list[Einsum | State], scalars: set[str]) -> list[Einsum | State]:
    """Without the row scalars that no state moves with: they are computed once, after the fold."""
    needed: set[str] = set()
    out: list[Einsum | State] = []
    for y in reversed(states):
        if isinstance(y, State):
            needed |= ex.reads(y.map) | (ex.reads(y.carry) | ex.names(y.carry, "new") if y.carry is not None else set())
        elif y.target in scalars and y.target not in needed:
            continue
        else:
            needed |= ex.reads(y.map)
        out.append(y)
    return out[::-1]


def cascade_rest(cascade: Cascade, mine: set[str]) -> list[Statement]:
    """The statements that are not reductions (or lets) of the rank."""
    return [x for x in cascade.body if _defined(x).isdisjoint(mine)]


def _times(value: Expr, post: Expr) -> Expr:
    over, under = ex.quotient(post)
    return ex.fraction([value, *over], under)


def _finite(post: Expr) -> bool:
    """Whether a factor is a number whatever the statistics are: 1, or 1 / max(l, c) for a positive c."""
    over, under = ex.quotient(post)
    return all(f.op == "const" for f in over) and all(_positive(f) for f in under)


def _positive(e: Expr) -> bool:
    if e.op == "max":
        return any(map(_positive, e.args))
    return e.op == "const" and isinstance(e.value, int | float) and 0 < e.value < math.inf


def _all_reads(x: Statement) -> set[str]:
    match x:
        case Fold(body=body):
            return {n for y in body for n in ex.reads(y.map)} - {y.target for y in body}
        case Einsum():
            return ex.reads(x.map) | ex.reads(x.mask)
    assert_never(x)


def _defined(x: Statement) -> set[str]:
    match x:
        case Fold():
            return {y.target for y in x.states}
        case Einsum(target=target):
            return {target}
    assert_never(x)
