"""The algebra across the cut between queries and keys: are weights a finite sum of products of a query's and a key's features?

    w[i, j] = 1 + x + x * x / 2  with  x[i, j] = sum[d] q[i, d] * k[j, d]
            = 1 * 1  +  sum[d] q[i, d] * k[j, d]  +  sum[d, f] (q[i, d] * q[i, f] / 2) * (k[j, d] * k[j, f])

The *decision* is the rank test of `ir.separability`: the matrix of weights of random queries and keys has a rank that stays below their
number. The *construction* is algebra: products of sums multiplied out, each contraction between a query and a key opened over a
copy of its rank. What is of one side alone is never looked into. The expansion is exact, so its proof is itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from einfuse.ir import expr as ex
from einfuse.ir import recurrence
from einfuse.ir.errors import EinfuseError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Einsum, Expr, Flat
from einfuse.ir.separability import matrix_rank
from einfuse.ir.text import show_expr

MAX_TERMS = 32
MAX_HEIGHT = 100
MAX_POWER = 4
POINTS, WIDTH = 64, 2
"""The random queries and keys of the rank test, and how many features each has there: a polynomial of degree p has rank C(p + 2, 2)."""
INFINITE = POINTS // 2
"""A rank as large as this grows with the number of points."""


class NotFactorableError(EinfuseError):
    """The weights have no linear form, and why."""


@dataclass(frozen=True, slots=True)
class Term:
    """``decay ^ (i - j) * sum over bound of product(rows) * product(columns)``; ``bound`` pairs each copy with the rank it copies."""

    rows: tuple[Expr, ...] = ()
    columns: tuple[Expr, ...] = ()
    bound: tuple[tuple[str, str], ...] = ()
    decay: Expr = ex.ONE

    def __mul__(self, other: Term) -> Term:
        return Term(
            self.rows + other.rows,
            self.columns + other.columns,
            self.bound + other.bound,
            call("*", self.decay, other.decay),
        )


@dataclass(slots=True)
class Cut:
    """The expressions of a canonical cascade, seen from the two ``sides``: the rank of the queries, then that of the keys."""

    cascade: Flat
    sides: tuple[str, str]
    einsums: dict[str, Einsum] = field(init=False)
    heights: dict[str, int] = field(default_factory=dict)  # operations in a row from the inputs to a statement
    copies: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self.einsums = {x.target: x for x in self.cascade.einsums}
        for x in self.einsums.values():
            self.heights[x.target] = x.map.depth + max((self.heights.get(n, 0) for n in ex.reads(x.map)), default=0)

    def side(self, e: Expr) -> set[str]:
        """The sides that ``e`` depends on: a value depends on the coordinates it is read at, and on nothing else."""
        return ex.indices(e) & set(self.sides)

    def pair(self, e: Expr) -> bool:
        return len(self.side(e)) == 2

    # -- the decision --------------------------------------------------------------------------------------------------------------

    def rank(self, e: Expr) -> int:
        """The rank of ``e`` over random queries and keys; `INFINITE` and more mean that none is in sight.

        Raises NotFactorableError where ``e`` reads a tensor of pairs.
        """
        from einfuse.ir.samples import Sample  # with numpy, for which a spec without a linear form to look for does not wait

        return max(matrix_rank(Sample(self, seed).matrix(e)) for seed in (0, 1))

    def definition(self, read: Expr) -> Einsum:
        """The statement over pairs that ``read`` reads, at its own coordinates."""
        if read.name not in self.einsums:
            raise NotFactorableError(f"{show_expr(read)} is a tensor over {' and '.join(self.sides)}")
        x = self.einsums[read.name]
        if self.heights[x.target] > MAX_HEIGHT:
            raise NotFactorableError(f"{x.target} is computed in more than {MAX_HEIGHT} steps")
        if read.args != tuple(map(ex.index, x.ranks)) and any(a.op not in ("index", "const") for a in read.args):
            raise NotFactorableError(f"{show_expr(read)} is read at other coordinates than its own")
        if not x.reducer.linear or set(x.over) & set(self.sides):
            raise NotFactorableError(f"{x.target} is a {x.red} over {', '.join(x.over)} for every pair")
        return x

    def opened(self, read: Expr, names: Mapping[str, Expr]) -> Expr:
        """The value of the statement that ``read`` reads, with its reduced ranks replaced."""
        x = self.definition(read)
        return ex.rename(x.map, {**dict(zip(x.ranks, read.args, strict=True)), **names})

    # -- the construction ----------------------------------------------------------------------------------------------------------

    def expand(self, e: Expr) -> list[Term]:
        """``e`` as a sum of terms. Raises NotFactorableError."""
        if not self.pair(e):
            return [Term(columns=(e,)) if self.sides[1] in self.side(e) else Term(rows=(e,))]
        match e.op:
            case "load":
                over = self.definition(e).over
                copied = {r: f"{r}.{next(self.copies)}" for r in over}
                inner = self.expand(self.opened(e, {r: ex.index(n) for r, n in copied.items()}))
                return [self._summed(t, {n: r for r, n in copied.items()}) for t in inner]
            case "+" | "-":
                right = self.expand(e.args[1])
                return _bounded(self.expand(e.args[0]) + (right if e.op == "+" else [_negated(t) for t in right]))
            case "neg":
                return [_negated(t) for t in self.expand(e.args[0])]
            case "float":
                return self.expand(e.args[0])
            case "*":
                return _bounded([a * b for a in self.expand(e.args[0]) for b in self.expand(e.args[1])])
            case "/" if not self.pair(e.args[1]):
                (by,) = self.expand(call("/", ex.ONE, e.args[1]))
                return [t * by for t in self.expand(e.args[0])]
            case "^":
                return self._power(e)
            case "exp":
                return [self._exponential(e)]
            case "select" if not self.pair(e.args[0]):
                sides = ((e.args[1], (ex.ONE, ex.ZERO)), (e.args[2], (ex.ZERO, ex.ONE)))
                return [t * self.expand(call("select", e.args[0], *s))[0] for a, s in sides for t in self.expand(a)]
        raise NotFactorableError(f"`{show_expr(e)}` is of finite rank, but not a sum of products that can be multiplied out")

    def _power(self, e: Expr) -> list[Term]:
        base, exponent = e.args
        if not self.pair(base):
            return [self._decay(base, self.expand(exponent), e)]
        if not isinstance(exponent.value, int) or not 2 <= exponent.value <= MAX_POWER:
            raise NotFactorableError(f"`{show_expr(e)}` is no whole power of at most {MAX_POWER}")
        out = self.expand(base)
        for _ in range(exponent.value - 1):
            out = _bounded([a * b for a in out for b in self.expand(base)])
        return out

    def _summed(self, t: Term, copied: Mapping[str, str]) -> Term:
        """The sum of ``t`` over the copies: those it depends on are bound, the others count."""
        used = set().union(*map(ex.indices, (*t.rows, *t.columns)))
        times = tuple(ex.call("float", ex.size(self.cascade.rank(r).size)) for n, r in copied.items() if n not in used)
        bound = tuple((n, r) for n, r in copied.items() if n in used)
        return replace(t, rows=t.rows + times, bound=t.bound + bound)

    def _exponential(self, e: Expr) -> Term:
        """``exp`` of a sum of ``c * (i - j)``, which is a decay, and of what neither side takes part in."""
        still: Expr = ex.ZERO
        moving: list[Term] = []
        for t in self.expand(e.args[0]):
            if t.bound or t.decay != ex.ONE:
                raise NotFactorableError(f"`{show_expr(e)}` has no finite rank")
            if any(self.side(f) for f in (*t.rows, *t.columns)):
                moving.append(t)
            else:
                still = call("+", still, ex.product(*t.rows))
        rate = self._rate(moving, e)
        return Term(rows=() if ex.is_const(still, 0) else (call("exp", still),), decay=call("exp", rate))

    def _decay(self, base: Expr, exponent: list[Term], e: Expr) -> Term:
        if self.side(base) or not ex.is_const(self._rate(exponent, e), 1):
            raise NotFactorableError(f"`{show_expr(e)}` is no decay between two positions")
        try:
            recurrence.log_decay(base)
        except recurrence.NotLinearError as error:
            raise NotFactorableError(str(error)) from None
        return Term(decay=base)

    def _rate(self, terms: Sequence[Term], e: Expr) -> Expr:
        """The ``c`` of a sum that is ``c * (i - j)``."""
        at = {r: ex.index(r) for r in self.sides}
        total: dict[str, list[Expr]] = {r: [] for r in self.sides}
        for t in terms:
            factors = recurrence.clean((*t.rows, *t.columns))
            mine = [r for r in self.sides for f in factors if f == at[r]]
            rest = tuple(f for f in factors if f not in at.values())
            if len(mine) != 1 or any(self.side(f) for f in rest) or t.bound:
                raise NotFactorableError(
                    f"the factors of `{show_expr(e)}` may each leave the range of a float where their product does not"
                )
            total[mine[0]].append(ex.product(*rest))
        here, there = (_sum(total[r]) for r in self.sides)
        if not ex.is_const(call("+", here, there), 0) and call("neg", here) != there and call("neg", there) != here:
            raise NotFactorableError(f"`{show_expr(e)}` is no decay between two positions")
        return here


def _sum(parts: Sequence[Expr]) -> Expr:
    out: Expr = ex.ZERO
    for p in parts:
        out = call("+", out, p)
    return out


def _negated(t: Term) -> Term:
    return replace(t, rows=(ex.const(-1), *t.rows))


def _bounded(terms: list[Term]) -> list[Term]:
    if len(terms) > MAX_TERMS:
        raise NotFactorableError(f"the weights multiply out to more than {MAX_TERMS} products")
    return terms
