"""The order in which a kernel walks queries and keys, given by lists: group after group of rows, each with the columns it goes with.

    over b, h                                        over b, h, i_group
    rank i: query = Nq                               rank i: query = 49
    rank j: key = Nk                                 rank j: key = 49
    in q[b, h, Nq, d]                        ->      in q[b, h, Nq, d] ; in i_at[i_groups, 49]: int ; in j_at[i_groups, 49]: int
    s[i, j] = sum[d] q[b, h, i, d] * ...             s[i, j] = sum[d] q[b, h, i_at[i_group, i], d] * ...
              where i // 8 // 7 == j // 8 // 7 and ...         where i_lo[i_group, i] <= j_at_0[i_group, j] and ...
    out o                                            out o[B, H, Nq, E] at [b, h, i_at[i_group, i], e]

What is computed does not change: the lists (`ir.groups`) hold every row, and for each row the columns that the conditions which they stand
for leave. Those conditions are left out; the `Test` of the groups says what is left of them. A row that stands twice in a group is
computed twice, with one result. Inputs and outputs stay laid out as the spec has them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Place, Rank, Tensor
from einfuse.ir.passes import infer_space
from einfuse.ir.rewrite import fresh, taken


@dataclass(frozen=True, slots=True)
class Pair:
    """What can be walked by lists: every sum over ``columns`` is under all of ``conditions``, each row of ``rows`` has its own outputs."""

    cascade: Flat  # with inferred spaces
    rows: str
    columns: str
    conditions: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Walked:
    """The cascade over groups, and the names of what it takes: the size of the groups, the lists, and ``lo``, ``hi``, ``at`` of each test."""

    cascade: Flat
    groups: str
    columns: str | None
    rows_at: str
    columns_at: str
    tests: tuple[tuple[str, str, str], ...]


def pair(cascade: Cascade) -> Pair | None:
    """The two ranks of a cascade that a list of pairs would do for; None where it computes anything beside."""
    if not isinstance(cascade, Flat):
        return None
    whole = {r.name for r in cascade.ranks if not r.is_sequence} | set(cascade.over)
    free = [r.name for r in cascade.ranks if r.name not in whole]
    if len(free) != 2 or cascade.places:
        return None
    inferred = infer_space.run(cascade)
    body = inferred.body
    reduced = {r for x in body for r in x.over} - whole
    if len(reduced) != 1:
        return None
    columns = reduced.pop()
    rows = next(r for r in free if r != columns)
    ranks = {x.target: x.ranks for x in body}
    if any(x.reducer.solves or not _own(x, ranks) for x in body):
        return None
    if not all(rows in ranks[n] and columns not in ranks[n] for n in cascade.outs):
        return None
    found = [ex.conjuncts(x.mask) for x in body if columns in x.over]
    shared = tuple(c for c in dict.fromkeys(found[0]) if all(c in other for other in found))
    return Pair(inferred, rows, columns, shared) if shared else None


def _own(x: Einsum, ranks: dict[str, tuple[str, ...]]) -> bool:
    """Whether a statement reads the others at their own coordinates."""
    every = (e for y in x.expressions for e in ex.walk(y) if e.op == "load" and e.name in ranks)
    return all(e.args == tuple(map(ex.index, ranks[e.name])) for e in every)


def run(
    found: Pair, said: tuple[Expr, ...], rows: int, columns: int | None, tests: int, sides: tuple[str, str] | None = None
) -> Walked:
    """The cascade over groups of ``rows`` rows and ``columns`` columns (None: known at launch), without the conditions ``said``.

    ``tests`` of the groups take their place. ``sides`` are the ranks of the groups' rows and columns, unless they are those of the
    cascade itself: each row of it must then be listed once.
    """
    c = found.cascade
    sides = sides or (found.rows, found.columns)
    names = taken(c)
    group, groups, wide = (fresh(f"{sides[0]}_{n}", names) for n in ("group", "groups", "columns"))
    at = {r: fresh(f"{r}_at", names) for r in sides}
    named = tuple(
        (
            fresh(f"{sides[0]}_lo_{n}", names),
            fresh(f"{sides[0]}_hi_{n}", names),
            fresh(f"{sides[1]}_at_{n}", names),
        )
        for n in range(tests)
    )
    lists = {r: ex.load(at[r], ex.index(group), ex.index(r)) for r in at}
    sized = {sides[0]: rows, sides[1]: wide if columns is None else columns}
    walk = _Walk({x.target for x in c.einsums}, lists, frozenset(said), _tests(sides, group, named))
    body = [replace(x, map=walk(x.map), mask=walk.mask(x.mask)) for x in c.body]
    tables = [Tensor(at[r], (ex.size(groups), ex.size(sized[r])), "int") for r in at]
    for lo, hi, place in named:
        tables += [Tensor(n, (ex.size(groups), ex.size(sized[sides[0]])), "int") for n in (lo, hi)]
        tables += [Tensor(place, (ex.size(groups), ex.size(sized[sides[1]])), "int")]
    ranks = {x.target: x.ranks for x in c.einsums}
    walked = replace(
        c,
        name=f"{c.name}_walk",
        over=(*c.over, group),
        ranks=(Rank(group, "batch", groups), *(replace(r, size=sized.get(r.name, r.size)) for r in c.ranks)),
        inputs=(*c.inputs, *tables),
        body=tuple(body),
        places=tuple(_place(c, n, (*c.over, *ranks[n]), lists) for n in c.outs),
    )
    return Walked(walked, groups, None if columns is not None else wide, at[sides[0]], at[sides[1]], named)


def _tests(sides: tuple[str, str], group: str, named: tuple[tuple[str, str, str], ...]) -> tuple[Expr, ...]:
    out: list[Expr] = []
    for lo, hi, at in named:
        here = ex.load(at, ex.index(group), ex.index(sides[1]))
        low, high = (ex.load(n, ex.index(group), ex.index(sides[0])) for n in (lo, hi))
        out += [ex.call("<=", low, here), ex.call("<", here, high)]
    return tuple(out)


def _place(c: Flat, name: str, ranks: tuple[str, ...], lists: dict[str, Expr]) -> Place:
    return Place(name, tuple(ex.size(c.rank(r).size) for r in ranks), tuple(lists.get(r, ex.index(r)) for r in ranks))


@dataclass(frozen=True, slots=True)
class _Walk:
    """Expressions in positions to those in places of lists."""

    statements: set[str]
    lists: dict[str, Expr]
    said: frozenset[Expr]
    tests: tuple[Expr, ...]

    def __call__(self, e: Expr) -> Expr:
        def listed(x: Expr) -> Expr | None:
            if x.op == "load" and x.name in self.statements:
                return x  # at its own coordinates
            return self.lists.get(x.name) if x.op == "index" else None

        return ex.substitute(e, listed)

    def mask(self, mask: Expr | None) -> Expr | None:
        """A space: where it has all that the lists stand for, their tests; conditions that it has in part stay as they are."""
        parts = ex.conjuncts(mask)
        whole = self.said <= set(parts)
        kept = [self(p) for p in parts if not (whole and p in self.said)]
        return ex.conjunction(*(self.tests if whole else ()), *kept)
