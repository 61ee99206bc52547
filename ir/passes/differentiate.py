"""Reverse mode on cascades: the backward of an attention is a few cascades more.

    o[i, e] = sum[j] exp(s[i, j] - m[i]) / l[i] * v[j, e]

            prepass        delta[i]   = sum[e] d_o[i, e] * o[i, e]
                           d_l[i]     = -delta[i] / l[i]
      ->    rows           dp[i, j]   = sum[e] d_o[i, e] * v[j, e]
                           d_s[i, j]  = dp[i, j] * exp(s[i, j] - m[i]) / l[i] + d_l[i] * exp(s[i, j] - m[i])
                           d_q[i, d]  = sum[j] d_s[i, j] * k[j, d] / sqrt(D)
            columns        d_k, d_v: the same statements, reduced over i

The reductions of the forward pass (m, l, o) are inputs here: they are saved, everything over (i, j) is recomputed. The adjoint of a
statistic needs no reduction of its own where the statistic is a factor of the map it enters (the generalised delta rule: if
``d log(map) / d x`` is free of j, then the sum over j of ``map`` is the saved output itself); elsewhere it is one more reduction.
The adjoint of a maximum that only stabilises is identically zero, which is checked numerically and not assumed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from einfuse.ir import expr as ex
from einfuse.ir.attained import attained
from einfuse.ir.definitions import Definitions
from einfuse.ir.derivative import derivative, log_derivative
from einfuse.ir.errors import SpecError, TooLargeError
from einfuse.ir.expr import call
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Einsum, Expr, Flat
from einfuse.ir.passes import look_up, seen
from einfuse.ir.passes.backward import Backward, Gradient, Kernels, adjoint
from einfuse.ir.passes.canonicalise import fold_ranks
from einfuse.ir.rewrite import fresh, taken
from einfuse.ir.sampling import sample
from einfuse.ir.spread import spread


def run(cascade: Flat, wanted: Iterable[str], inner: bool = False) -> Backward:
    """The backward of a canonical ``cascade`` (before folds exist) for the inputs named in ``wanted``; of ``inner`` ones, see `passes.seen`."""
    return _Reverse(cascade, tuple(wanted), inner).run()


def invariant(cascade: Flat) -> frozenset[str]:
    """The maxima and minima that no output depends on: those that only keep numbers in range."""
    floats = tuple(t.name for t in cascade.inputs if t.dtype == "float" and not t.param)
    reverse = _Reverse(cascade, floats)
    reverse.run()
    return frozenset(n for n, x in reverse.einsums.items() if x.reducer.extreme and reverse.parts.get(n) == [])


@dataclass(slots=True)
class _Part:
    """A share of an adjoint that lives on one space."""

    map: Expr
    mask: Expr | None


class _Reverse:
    def __init__(self, cascade: Flat, wanted: tuple[str, ...], inner: bool = False) -> None:
        self.cascade, self.wanted, self.inner = cascade, set(wanted), inner
        self.folded = fold_ranks(cascade)
        self.einsums = {x.target: x for x in cascade.einsums}
        assert len(self.einsums) == len(cascade.body), "differentiate runs before folds exist"
        self.order = [r.name for r in cascade.ranks]
        self.columns = {r for r in self.folded if r != self._row_rank()} or set(self.folded)
        self.taken = taken(cascade)
        self.body: list[Einsum] = []  # the adjoint statements, in order
        self.known: dict[tuple[tuple[str, ...], str | None, tuple[str, ...], Expr, Expr | None], str] = {}
        self.parts: dict[str, list[_Part]] = {}
        self.reads: dict[tuple[str, tuple[Expr, ...]], list[tuple[Einsum, Expr, Expr | None]]] = {}
        self.row_values: dict[str, Expr] = {}  # definitions of row scalars, for the invariance check

    # -- the whole ---------------------------------------------------------------------------------------------------------

    def run(self) -> Backward:
        for name in self.cascade.outs:
            x = self.einsums[name]
            self.taken.add(adjoint(name))
            self.parts.setdefault(name, []).append(_Part(ex.at(adjoint(name), (*self.cascade.over, *x.ranks)), None))
        for x in reversed(list(self.einsums.values())):
            for part in self.parts.get(x.target, []):
                self._backward(x, part)
        gradients = self._input_gradients()
        found = look_up.among(self.cascade, self.body, self.taken, self._row_rank())
        return Kernels(
            found.cascade, self.einsums, found.body, self.folded, self.columns, self._row_rank(), found.products
        ).run(gradients)

    def _named(
        self, base: str, ranks: tuple[str, ...], red: str | None, over: tuple[str, ...], e: Expr, mask: Expr | None
    ) -> Expr:
        """A statement with this value (one for equal values), read at its own ranks."""
        key = (ranks, red, over, e, mask)
        if key not in self.known:
            name = fresh(base, self.taken)
            self.known[key] = name
            self.body.append(Einsum(name, ranks, red, over, e, mask))
        return ex.at(self.known[key], ranks)

    def _sorted(self, ranks: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(set(ranks), key=self.order.index))

    def _free(self, e: Expr) -> set[str]:
        """The non-ambient ranks that ``e`` depends on."""
        return ex.indices(e) - set(self.cascade.over)

    # -- one statement -----------------------------------------------------------------------------------------------------

    def _backward(self, x: Einsum, part: _Part) -> None:
        """Hands the adjoint of ``x`` on to everything its map reads."""
        bar = self._as_read(x, part)
        if ex.is_const(bar, 0):
            return
        for read in dict.fromkeys(e for e in ex.walk(x.map) if e.op == "load"):
            target = self.einsums.get(read.name)
            if target is None:
                if read.name in self.wanted:
                    self._to_input(x, read, bar, part.mask)
            elif read.args != tuple(map(ex.index, target.ranks)):
                if not ex.is_const(derivative(x.map, read), 0):
                    raise SpecError(
                        f"the gradient of {x.target} through the shifted read of {read.name} is not available",
                        read.loc or x.loc,
                        "shift the input itself, or compute the shifted value as a statement of its own",
                    )
            else:
                self._to_statement(x, target, read, bar, part.mask)

    def _as_read(self, x: Einsum, part: _Part) -> Expr:
        """The adjoint as a named value where it is more than a read."""
        if part.map.op == "load" or part.map.op == "const":
            return part.map
        out = self._named(adjoint(x.target), x.ranks, None, (), part.map, part.mask)
        if not set(x.ranks) & self.columns:
            self.row_values[out.name] = part.map
        return out

    def _slope(self, x: Einsum, read: Expr) -> Expr:
        """d map / d read, for a sum or a pointwise statement; for a maximum, the share of each point that attains it."""
        slope = derivative(x.map, read)
        if x.reducer.linear:
            return slope
        if not x.reducer.extreme:
            if ex.is_const(slope, 0):
                return slope
            raise SpecError(f"{x.red} has no derivative", x.loc, "use a sum or a maximum")
        at_extreme = attained(x, self.einsums.values(), self.cascade.ranks)
        ties = self._named(
            f"{x.target}_ties", x.ranks, "sum", x.over, call("select", at_extreme, ex.const(1.0), ex.const(0.0)), x.mask
        )
        return call("select", at_extreme, call("/", slope, ties), ex.const(0.0))

    def _to_statement(self, x: Einsum, target: Einsum, read: Expr, bar: Expr, mask: Expr | None) -> None:
        mask = ex.conjunction(*ex.conjuncts(x.mask), *ex.conjuncts(mask))
        points = {*x.ranks, *x.over}
        free = self._free_rule(x, read, bar, mask) if x.reducer.sums else None
        if free is not None:
            gone = points - set(target.ranks)
            self._add(target, free, ex.conjunction(*(p for p in ex.conjuncts(mask) if not self._free(p) & gone)))
            return
        slope = self._slope(x, read)
        if not ex.is_const(slope, 0):
            reduced = self._reduce(
                f"{adjoint(target.target)}_sum", self._handed(x, read, bar, slope), points - set(target.ranks), mask
            )
            left = ex.conjunction(*(p for p in ex.conjuncts(mask) if not self._free(p) & (points - set(target.ranks))))
            self._add(target, reduced, left)

    def _handed(self, x: Einsum, read: Expr, bar: Expr, slope: Expr) -> Expr:
        """The adjoint times the slope. Where the map of a reduction over positions chooses what it reads, the same conditions choose the
        adjoint: that of a row without points may be no number, and 0 times it is none either."""
        row = bar.op == "load" and bar.name in self.row_values and any(self.cascade.rank(r).is_sequence for r in x.over)
        where = ex.choices(x.map, read) if row else ()
        value = call("*", bar, ex.where(slope, where))
        return call("select", ex.conjunction(*where) or ex.TRUE, value, ex.const(0.0)) if where else value

    def _free_rule(self, x: Einsum, read: Expr, bar: Expr, mask: Expr | None) -> Expr | None:
        """The adjoint of a factor of a sum: (sum of bar * x) * d log(map) / d read, where that is free of the reduced ranks."""
        if set(x.over) & self._free(read):
            return None
        rate = log_derivative(x.map, read)
        if ex.is_const(rate, 0) or self._free(rate) & set(x.over):
            return None
        rest = set(x.ranks) - self._free(read)
        if self._free(rate) & rest:
            return None
        space = ex.conjunction(*(p for p in ex.conjuncts(mask) if not self._free(p) & set(x.over)))
        weight = self._reduce("delta", call("*", bar, ex.at(x.target, x.ranks)), rest, space)
        return _guarded(weight, rate)

    def _reduce(self, base: str, e: Expr, ranks: set[str], mask: Expr | None) -> Expr:
        """``sum[ranks] e`` as a value: factors free of the ranks stay outside; feature contractions and the rest in turn."""
        ranks = {r for r in ranks if r not in self.cascade.over}
        if not ranks:
            return e
        terms = ex.terms(e)
        if len(terms) > 1:
            total: Expr = ex.ZERO
            for sign, term in terms:
                total = call("+" if sign > 0 else "-", total, self._reduce(base, term, ranks, mask))
            return total
        over, under = ex.quotient(e)
        whole = {r for r in ranks if not self.cascade.rank(r).is_sequence}
        for stage in ({r} for r in (*self._sorted(whole), *self._sorted(ranks - whole))):
            inside = [f for f in over if self._free(f) & stage]
            below = [f for f in under if self._free(f) & stage]
            if below:
                inside, below = [ex.call("/", ex.product(*inside), ex.product(*below))], []
            over = [f for f in over if not self._free(f) & stage]
            under = [f for f in under if not self._free(f) & stage]
            inner = ex.product(*inside)
            value_ranks = self._sorted(self._free(inner) - stage)
            carried = stage - whole
            if carried:  # everything that depends on what is left must be inside this reduction
                inner = ex.fraction([*over, inner], under)
                over, under = [], []
                masked = set() if mask is None else self._free(mask)  # the sum differs from point to point of these, too
                value_ranks = self._sorted((self._free(inner) | masked) - stage)
            here = mask if carried else ex.conjunction(*(p for p in ex.conjuncts(mask) if self._free(p) & stage))
            over.append(self._named(base, value_ranks, "sum", self._sorted(stage), inner, here))
            mask = ex.conjunction(*(p for p in ex.conjuncts(mask) if not self._free(p) & stage))
        return ex.fraction(over, under)

    def _add(self, target: Einsum, e: Expr, mask: Expr | None) -> None:
        """One more contribution to the adjoint of ``target``; contributions on one space are summed."""
        if target.reducer.extreme and self._vanishes([*self._row_parts(target), e]):
            self.parts[target.target] = []
            return
        for part in self.parts.setdefault(target.target, []):
            if set(ex.conjuncts(part.mask)) == set(ex.conjuncts(mask)):
                part.map = ex.collected(part.map, e)
                return
        self.parts[target.target].append(_Part(e, mask))

    def _row_parts(self, target: Einsum) -> list[Expr]:
        return [p.map for p in self.parts.get(target.target, [])]

    def _vanishes(self, contributions: list[Expr]) -> bool:
        """Is the sum zero for random values of all it reads, on every branch? (Row scalars of the adjoint are seen through.)

        Where a maximum, an absolute value or a choice takes one of two branches, random values may never ask for the other, on which the
        sum may be something else: so branches are drawn, too.
        """
        e: Expr = ex.ZERO
        for c in contributions:
            e = call("+", e, self._seen_through(c))
        branches = 8 if any(x.op in FUNCTIONS and FUNCTIONS[x.op].cases for x in ex.walk(e)) else 0
        for seed in range(3 + branches):
            value, scale = sample(e, random.Random(seed), {}, None if seed < 3 else {})
            if math.isnan(value) or abs(value) > 1e-9 * max(scale, 1e-30):
                return False
        return True

    def _seen_through(self, e: Expr) -> Expr:
        def definition(x: Expr) -> Expr | None:
            return self._seen_through(self.row_values[x.name]) if x.op == "load" and x.name in self.row_values else None

        return ex.substitute(e, definition)

    # -- inputs ------------------------------------------------------------------------------------------------------------

    def _to_input(self, x: Einsum, read: Expr, bar: Expr, mask: Expr | None) -> None:
        slope = self._slope(x, read)
        if not ex.is_const(slope, 0):
            mask = ex.conjunction(*ex.conjuncts(x.mask), *ex.conjuncts(mask))
            plain = spread(self.cascade, read, {*x.ranks, *x.over}, self.taken)
            self.cascade, self.order = plain.cascade, [r.name for r in plain.cascade.ranks]
            value = ex.product(self._handed(x, read, bar, slope), *plain.places)
            self.reads.setdefault((read.name, plain.args), []).append((x, value, mask))

    def _input_gradients(self) -> list[tuple[Gradient, str | None]]:
        """One statement per read of an input; with the sequence rank that its kernel must own (None: several, a dense gradient)."""
        out: list[tuple[Gradient, str | None]] = []
        for (name, read), shares in self.reads.items():
            index = tuple(map(self._from_inputs, read))
            used = {r for e in index for r in self._free(e)}
            sequence = [r for r in self._sorted(used) if self.cascade.rank(r).is_sequence]
            sums: dict[tuple[tuple[str, ...], Expr | None], Expr] = {}
            for x, e, mask in shares:
                points = {*x.ranks, *x.over}
                keep = set(used)
                mine = [r for r in points if self.cascade.rank(r).is_sequence]
                if not sequence:  # a partial sum per row, added up outside
                    keep |= {r for r in mine if r == self._row_rank()} or set(mine[:1])
                value = self._reduce(adjoint(name), e, points - keep, mask)
                left = ex.conjunction(*(p for p in ex.conjuncts(mask) if not self._free(p) & (points - keep)))
                key = (self._sorted(keep), left)
                sums[key] = call("+", sums.get(key, ex.ZERO), value)
            for (ranks, left), value in sums.items():
                owned = [r for r in ranks if self.cascade.rank(r).is_sequence]
                sides = self._outer(value, set(owned), left) if owned and not sequence else (value,)
                sides = seen.only(self.cascade, self.body, sides, set(owned), self._named, self.inner)
                spans = [self._sorted(self._free(side) | set(owned)) for side in sides] if len(sides) > 1 else [ranks]
                apart = self._of_rows(value, index, set(owned), left) if len(owned) > 1 else None
                if apart is not None:
                    sides, spans = apart, [self._sorted(self._free(side)) for side in apart]
                masks = (left, None if apart else left)  # rows have no mask of pairs
                made = [
                    (self._stated(adjoint(name), side, span, mask), (*self.cascade.over, *span))
                    for side, span, mask in zip(sides, spans, masks, strict=False)
                ]
                gradient = Gradient(name, index, *made[0], *made[1:])
                out.append((gradient, owned[0] if len(owned) == 1 else None if owned else self._row_rank()))
        return out

    def _outer(self, value: Expr, rows: set[str], mask: Expr | None) -> tuple[Expr, ...]:
        """The two sides of a product of which each has features of its own; the value itself where there are no such two."""
        over, under = ex.quotient(value)
        groups: list[
            tuple[set[str], list[tuple[str, Expr]]]
        ] = []  # features, and the factors and divisors that have any of them
        for place in (*(("over", f) for f in over), *(("under", f) for f in under)):
            features = self._free(place[1]) - rows
            near = [g for g in groups if g[0] & features]
            groups = [g for g in groups if g not in near]
            groups.append((features.union(*(g[0] for g in near)), [*(p for g in near for p in g[1]), place]))
        first = next((g for g in groups if g[0]), None)
        rest = [g for g in groups if g is not first]
        if first is None or not any(g[0] for g in rest) or self._free(mask or ex.TRUE) - rows:
            return (value,)
        places = (first[1], [p for g in rest for p in g[1]])
        return tuple(ex.fraction(*([f for at, f in side if at == which] for which in ("over", "under"))) for side in places)

    def _of_rows(self, value: Expr, index: tuple[Expr, ...], pairs: set[str], mask: Expr | None) -> tuple[Expr, Expr] | None:
        """A number for pairs, and the features of one row that it is a factor of; None where there are no such two, or no one coordinate is
        computed of the pair. The features of a row without pairs are 0.
        """
        row, (over, under) = self._row_rank(), ex.quotient(value)
        rows, weights = (
            ex.fraction(*([f for f in side if bool(self._free(f) - pairs) is featured] for side in (over, under)))
            for featured in (True, False)
        )
        placed = [e for e in index if self._free(e) & pairs]
        plain = all(e.op == "index" or (e.op == "//" and e.args[0].op == "index") for e in index if e not in placed)
        if not plain or len(placed) != 1 or not self._free(placed[0]) == self._free(weights) == pairs:
            return None
        if row is None or self._free(rows) & pairs != {row} or self._free(mask or ex.TRUE) - pairs:
            return None
        if ex.reads(rows) - set(map(adjoint, self.cascade.outs)):  # those are numbers wherever there is a row
            here = self._named("seen", (row,), "sum", self._sorted(pairs - {row}), call("abs", weights), mask)
            rows = call("select", call("==", here, ex.const(0.0)), ex.const(0.0), rows)
        return weights, rows

    def _stated(self, base: str, value: Expr, ranks: tuple[str, ...], mask: Expr | None) -> str:
        """The statement that has this value, a new one where there is none."""
        target = self._own_statement(value, ranks, mask)
        if target is None:
            target = fresh(base, self.taken)
            self.body.append(Einsum(target, ranks, None, (), value, mask))
        return target

    def _from_inputs(self, e: Expr) -> Expr:
        """An index expression with the (integer) statements it reads written out, unless that is too large: they are evaluated with it."""

        def allowed(x: Einsum) -> None:
            if x.red is not None:
                raise SpecError(f"the gradient through an index computed by {x.red} is not available", x.loc)

        try:
            return Definitions(self.einsums.values(), allowed).into(e)
        except TooLargeError:
            return e

    def _own_statement(self, value: Expr, ranks: tuple[str, ...], mask: Expr | None) -> str | None:
        """The statement that already is this value and has no points outside ``mask``, if there is one."""
        if value.op != "load" or value.args != tuple(map(ex.index, ranks)):
            return None
        inside = set(ex.conjuncts(mask))
        own = (y for y in self.body if y.target == value.name and y.ranks == ranks)
        return next((y.target for y in own if inside <= set(ex.conjuncts(y.mask))), None)

    def _row_rank(self) -> str | None:
        """The sequence rank that the outputs are laid out along; None where there is none at all."""
        for name in self.cascade.outs:
            for r in self.einsums[name].ranks:
                if self.cascade.rank(r).is_sequence:
                    return r
        rows = (r.name for r in self.cascade.ranks if r.is_sequence and r.name not in self.cascade.over)
        return next(rows, None)


def _guarded(weight: Expr, rate: Expr) -> Expr:
    """weight * rate, and 0 where the weight is: a row without live points has infinite rates and no adjoint."""
    if rate.op == "const" or (rate.op == "neg" and rate.args[0].op == "const"):
        return call("*", weight, rate)
    return call("select", call("==", weight, ex.const(0.0)), ex.const(0.0), call("*", weight, rate))
