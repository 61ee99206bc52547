"""What the weights of a whole attention factor into: its pairs of query and key, its sums over keys, and the features of both.

`find` looks for reductions over one sequence rank of what depends on another, asks `ir.cut` for the rank of each and for its terms, and
collects what `ir.passes.reassociate` needs to write the linear form; or says why there is none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from einfuse.ir import expr as ex
from einfuse.ir.affine import affine
from einfuse.ir.cut import INFINITE, POINTS, Cut, NotFactorableError, Term
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, DType, Einsum, Expr, Flat
from einfuse.ir.passes import canonicalise, choose
from einfuse.ir.predicates import Ge, predicate
from einfuse.ir.recurrence import clean
from einfuse.ir.rewrite import with_used_ranks
from einfuse.ir.text import show_expr

Kind = Literal["sums", "flat sums", "scan", "flat scan"]


@dataclass(frozen=True, slots=True)
class Sum:
    """A reduction over the keys: ``row * value * sum of terms``, each term a feature of the query times one of the key."""

    einsum: Einsum
    row: tuple[Expr, ...]
    value: tuple[Expr, ...]
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Factorisation:
    """How the weights of a cascade factor: the ranks cut apart, whether only keys up to the query count, and the sums over keys.

    ``sampled`` is the rank of the weights at random points with two features a vector: the evidence that there is a finite one.
    """

    cascade: Flat
    row: str
    column: str
    causal: bool
    keys: Expr | None
    sums: tuple[Sum, ...]
    sampled: int

    @property
    def kind(self) -> Kind:
        """How the linear form runs: ``sums`` or a ``scan``; ``flat`` where their rank is one of several terms or contractions."""
        flat = any(len(s.terms) > 1 or len(s.terms[0].bound) > 1 for s in self.sums)
        if self.causal:
            return "flat scan" if flat else "scan"
        return "flat sums" if flat else "sums"

    @property
    def widths(self) -> frozenset[str]:
        """The sizes that the linear form is written for: those of ranks that are part of a flat one."""
        ranks = {r for s in self.sums for t in s.terms for _, r in t.bound if len(s.terms) > 1 or len(t.bound) > 1}
        return frozenset(size for r in ranks if isinstance(size := self.cascade.rank(r).size, str))

    @property
    def terms(self) -> tuple[Term, ...]:
        """The distinct products of key features that any of the sums needs."""
        return tuple(dict.fromkeys(replace(t, rows=()) for s in self.sums for t in s.terms))

    def rank(self, widths: Mapping[str, int]) -> int:
        """The number of features: the rank of the weights, for feature sizes given by name."""
        return sum(extent(self.cascade, t, widths) for t in self.terms)

    def numbers(self, widths: Mapping[str, int]) -> int:
        """The numbers that belong to one key: those of all tensors that the sums read along the keys."""
        parts = [f for s in self.sums for f in (*s.value, *(f for t in s.terms for f in t.columns))]
        found: dict[str, int] = {}
        for e in (e for f in parts for e in ex.walk(f) if e.op == "load" and self.column in ex.indices(e)):
            ranks = {r.partition(".")[0] for a in e.args for r in ex.indices(a)} - {self.column, *self.cascade.over}
            found[e.name] = math.prod(width(self.cascade, r, widths) for r in ranks)
        return max(1, sum(found.values()))

    def show(self) -> str:
        """The rank as a formula of the sizes."""
        return " + ".join(formula(self.cascade, t) for t in self.terms)


def obstacle(cascade: Cascade) -> str | None:
    """Why ``cascade`` has no linear form; None where it has one."""
    try:
        find(cascade)
    except NotFactorableError as reason:
        return str(reason)
    return None


def find(cascade: Cascade) -> Factorisation:
    """The factorisation of the weights. Raises NotFactorableError, which says why there is none."""
    if not isinstance(cascade, Flat):
        raise NotFactorableError("it is a scan already")
    if choose.chooses(cascade):
        raise NotFactorableError("it chooses what it reads")
    c = with_used_ranks(canonicalise.run(cascade))
    row, column, sums = _pair(c)
    cut = Cut(c, (row, column))
    spaces = {tuple(p for p in ex.conjuncts(x.mask) if cut.pair(p)) for x in sums}
    if len(spaces) > 1:
        raise NotFactorableError("its sums over the keys run over different spaces")
    (space,) = spaces
    for p in space:
        _check_past(c, p, row, column)
    causal = bool(space)
    keys = {ex.conjunction(*(p for p in ex.conjuncts(x.mask) if cut.side(p) == {column})) for x in sums}
    if len(keys) > 1:
        raise NotFactorableError("its sums over the keys run over different keys")
    sampled = max(_sampled(cut, x) for x in sums)
    found = tuple(_sum_of(cut, x) for x in sums)
    _check_moments(c, found)
    if not causal and any(t.decay != ex.ONE for s in found for t in s.terms):
        raise NotFactorableError(f"a decay over all of {column} grows on one side of {row}: it needs `{column} <= {row}`")
    _check_rest(c, row, column, sums, causal)
    return Factorisation(c, row, column, causal, keys.pop(), found, sampled)


# -- finding -----------------------------------------------------------------------------------------------------------------------


def _pair(c: Flat) -> tuple[str, str, tuple[Einsum, ...]]:
    """The rank of the queries, that of the keys, and the reductions over keys of what depends on both."""
    whole = {r.name for r in c.ranks if not r.is_sequence} | set(c.over)
    found: dict[tuple[str, str], list[Einsum]] = {}
    for x in c.body:
        for j in (r for r in x.over if r not in whole):
            for i in sorted((ex.indices(x.map) | ex.indices(x.mask)) - whole - {j}):
                found.setdefault((i, j), []).append(x)
    if not found:
        raise NotFactorableError("it sums over no pairs of a query and a key")
    if len(found) > 1:
        raise NotFactorableError("it sums over several kinds of pairs: " + ", ".join(f"({i}, {j})" for i, j in found))
    (((i, j), sums),) = found.items()
    for x in sums:
        if not x.reducer.sums:
            raise NotFactorableError(f"{x.target} is a {x.red} over {j} of what depends on {i} and {j}, and no sum")
        if len(x.over) > 1:
            raise NotFactorableError(f"{x.target} sums over {', '.join(x.over)} at once")
    return i, j, tuple(sums)


def _check_past(c: Flat, p: Expr, row: str, column: str) -> None:
    """Raises NotFactorableError unless ``p`` is ``column <= row``, or that with the last of both beside each other."""
    types: dict[str, DType] = {t.name: t.dtype for t in c.inputs}
    found = predicate(p, lambda n: types.get(n, "float"))
    past = affine(ex.index(row)) - affine(ex.index(column))
    ends = affine(ex.size(c.rank(column).size)) - affine(ex.size(c.rank(row).size))
    if not isinstance(found, Ge) or found.form not in (past, past + ends):
        reason = f"under `{show_expr(p)}` no running sum holds the keys of the next query"
        raise NotFactorableError(f"{reason} (only `{column} <= {row}` does)")


def _sampled(cut: Cut, x: Einsum) -> int:
    rank = cut.rank(x.map)
    if rank >= INFINITE:
        i, j = cut.sides
        raise NotFactorableError(
            f"the weights of {x.target} have no finite rank across {i} | {j} ({rank} at {POINTS} random points)"
        )
    return rank


def _sum_of(cut: Cut, x: Einsum) -> Sum:
    """The terms of one reduction; factors that all of them have, and no copied rank, stand before the sum."""
    terms = [_tidy(cut, t) for t in cut.expand(x.map)]
    row = tuple(f for f in terms[0].rows if _loose(f) and f.op != "const" and all(f in t.rows for t in terms))
    value = tuple(f for f in terms[0].columns if _loose(f) and all(f in t.columns for t in terms))
    grouped: dict[Term, Expr] = {}
    for t in terms:
        key = replace(t, rows=(), columns=_without(t.columns, value))
        grouped[key] = call("+", grouped.get(key, ex.ZERO), ex.product(*_without(t.rows, row)))
    found = tuple(replace(key, rows=tuple(clean((rows,)))) for key, rows in grouped.items())
    found = tuple(sorted(found, key=lambda t: -len(t.bound)))  # a smaller flat rank starts at a whole multiple of a larger one
    return Sum(x, row, value, found)


def _tidy(cut: Cut, t: Term) -> Term:
    """Factors one by one, those of a side in an order of their own, copies numbered from 1; numbers go to the rows."""
    rows, columns = clean(t.rows), clean(t.columns)
    numbers = tuple(f for f in columns if not cut.side(f) and not copies(f))
    rows, columns = clean((*rows, *numbers)), tuple(f for f in columns if f not in numbers)
    columns = tuple(sorted(columns, key=show_expr))
    order = sorted(t.bound, key=lambda b: (next((n for n, f in enumerate(columns) if b[0] in ex.indices(f)), len(columns)), b))
    names = {old: f"{rank}.{n}" for n, (old, rank) in enumerate(order, 1)}
    new = {old: ex.index(name) for old, name in names.items()}
    return Term(
        tuple(ex.rename(f, new) for f in rows),
        tuple(ex.rename(f, new) for f in columns),
        tuple((names[old], rank) for old, rank in order),
        t.decay,
    )


def copies(e: Expr) -> set[str]:
    return {r for r in ex.indices(e) if "." in r}


def _loose(e: Expr) -> bool:
    return not copies(e)


def _without(factors: tuple[Expr, ...], taken: tuple[Expr, ...]) -> tuple[Expr, ...]:
    left = list(factors)
    for f in taken:
        left.remove(f)
    return tuple(left)


def _check_rest(c: Flat, row: str, column: str, sums: tuple[Einsum, ...], causal: bool) -> None:
    """Nothing but the sums may need the pairs, and a scan may have no other reduction along its rank, nor another sequence."""
    known = {r.name for r in c.ranks if not r.is_sequence} | {row, column, *c.over}
    for x in c.body:
        if causal and {*x.ranks, *x.over} - known:
            raise NotFactorableError(
                f"{x.target} has points along {', '.join(sorted({*x.ranks, *x.over} - known))}, and a scan along {row} alone"
            )
        if x.target in c.outs and {row, column} <= set(x.ranks):
            raise NotFactorableError(f"the output {x.target} is a number for every pair")
        if causal and x not in sums and {row, column} & set(x.over):
            raise NotFactorableError(f"{x.target} reduces over {', '.join(x.over)}, which a scan would go along")
        if causal and x.target in c.outs and column in x.ranks:
            raise NotFactorableError(f"the output {x.target} is laid out along {column}, and the scan along {row}")


def _check_moments(c: Flat, sums: tuple[Sum, ...]) -> None:
    """No feature of a query may hold one of the sums: ``sum (s - mean) ^ 2`` as ``sum s ^ 2 - n mean ^ 2`` has lost its digits."""
    late = {s.einsum.target for s in sums}
    for x in c.body:
        if ex.reads(x.map) & late:
            late.add(x.target)
    for s in sums:
        inside = {n for t in s.terms for f in t.rows for n in ex.reads(f) & late}
        if inside:
            name = min(inside)
            raise NotFactorableError(
                f"{s.einsum.target} would be a difference of moments, since its weights hold {name}: they would cancel"
            )


# -- the rank of a term ------------------------------------------------------------------------------------------------------------


def symmetric(t: Term) -> bool:
    """Do both sides stay the same when the two copies are exchanged?"""
    if len(t.bound) != 2 or t.bound[0][1] != t.bound[1][1]:
        return False
    (a, _), (b, _) = t.bound
    swap = {a: ex.index(b), b: ex.index(a)}
    return all(_same(f, tuple(ex.rename(e, swap) for e in f)) for f in (t.rows, t.columns))


def _same(a: tuple[Expr, ...], b: tuple[Expr, ...]) -> bool:
    return sorted(map(show_expr, a)) == sorted(map(show_expr, b))


def width(c: Flat, rank: str, widths: Mapping[str, int]) -> int:
    size = c.rank(rank).size
    if isinstance(size, str) and size not in widths:
        raise NotFactorableError(f"the size {size} of {rank} must be known: its coordinates are part of a flat rank")
    return size if isinstance(size, int) else widths[size]


def extent(c: Flat, t: Term, widths: Mapping[str, int]) -> int:
    """The coordinates of a term's flat rank."""
    sizes = [width(c, r, widths) for _, r in t.bound]
    if len(sizes) == 2 and symmetric(t):
        return sizes[0] * (sizes[0] // 2 + 1)
    out = 1
    for n in sizes:
        out *= n
    return out


def formula(c: Flat, t: Term) -> str:
    sizes = [str(c.rank(r).size) for _, r in t.bound]
    if len(sizes) == 2 and symmetric(t):
        return f"{sizes[0]} * ({sizes[0]} // 2 + 1)"
    return " * ".join(sizes) or "1"
