"""Affine normal forms, intervals, table queries and what follows from clauses: each against every point of small boxes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
from mask_oracle import evaluate, mask

from einfuse.ir import DType, Expr
from einfuse.ir.affine import affine
from einfuse.ir.boxes import Box, possible
from einfuse.ir.implications import consequences, solvable
from einfuse.ir.intervals import LIMIT, interval
from einfuse.ir.predicates import All, Any, Eq, Ge, Predicate, Unknown, clauses, predicate
from einfuse.ir.tables import Table
from einfuse.ir.text import show_expr

TABLE = np.array([5, -3, 7, 7, 0, 2, -8, 4, 4, 1, 9, -1])
GRID = np.arange(48).reshape(6, 8) * 7 % 23


TYPES: dict[str, DType] = {"t": "int", "grid": "int", "keep": "bool"}


def types(name: str) -> DType:
    return TYPES.get(name, "float")


def number(text: str) -> Expr:
    """The left operand of ``text < 0``."""
    return mask(f"{text} < 0").args[0]


def normal(text: str) -> str:
    return show_expr(affine(number(text)).expr)


# -- normal forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("i - j + j", "i"),
        ("2 * (i - 3) - (i + i)", "(-6)"),
        ("(i + 64) // 64", "i // 64 + 1"),
        ("(3 * i + 64 * j + 70) // 64", "(3 * i + 6) // 64 + j + 1"),
        ("(i + 64) % 64", "i % 64"),
        ("48 * (i // 48) + i % 48", "i"),
        ("96 * ((i + 5) // 48) + 2 * ((i + 5) % 48)", "2 * i + 10"),
        ("(i // 48) * 48 + (j % 48)", "j % 48 + 48 * (i // 48)"),
        ("max(i + 1, i)", "i + 1"),
        ("min(i + 1, i - 4) + 4", "i"),
        ("abs(0 - 3)", "3"),
        ("t[j - j + i] - t[i]", "0"),
        ("i * j - j * i", "0"),
        ("(0 - i) * j + i * j", "0"),
        ("Nk - Nq + i - Nk", "i - Nq"),
    ],
)
def test_normal_forms(text: str, expected: str) -> None:
    assert normal(text) == expected


FORMS = ["i - j", "3 * i - 2 * j", "i // 5 + j % 3", "(i - j) // 4 - (7 + j) // 4", "abs(i - j) + min(i, 2 * j)", "i * j - 3"]
FORMS += ["(i * 3 + 7) // 3 - i", "i // (j + 1)", "(i - 9) % (j + 2)", "max(i, j) - t[i]", "t[i - j + 5] - grid[i // 2, j]"]
FORMS += ["select(i < j, t[i], 3 * j)", "int(i == j) + int(keep[i])", "(0 - i) // 3", "(i - 8) % 3 - j // 2", "int(i - j) + 1"]


@pytest.mark.parametrize("text", FORMS)
def test_normal_forms_keep_values(text: str) -> None:
    e, env = number(text), {"t": TABLE, "grid": GRID, "keep": TABLE > 1}
    env |= {"i": np.arange(12)[:, None], "j": np.arange(9)[None]}
    assert (evaluate(affine(e).expr, env) == evaluate(e, env)).all()


# -- intervals ---------------------------------------------------------------------------------------------------------


def boxes() -> tuple[Box, list[tuple[tuple[int, int], tuple[int, int]]]]:
    """Every box of some coordinates at once: rows by columns, as tiles are."""
    rows = [(a, b) for a in range(0, 12, 2) for b in range(a, 12, 3)]
    columns = [(a, b) for a in range(0, 9, 3) for b in range(a, 9, 2)]
    (i_lo, i_hi), (j_lo, j_hi) = np.array(rows).T, np.array(columns).T
    coordinates = {"i": interval(i_lo[:, None], i_hi[:, None]), "j": interval(j_lo[None], j_hi[None])}
    tables = {"t": Table(TABLE), "grid": Table(GRID), "keep": Table(TABLE > 1)}
    return Box(coordinates, tables, types), list(product(rows, columns))


@pytest.mark.parametrize("text", FORMS)
def test_intervals_hold_every_value(text: str) -> None:
    e, (box, every) = number(text), boxes()
    found = box.form(affine(e))
    assert found is not None
    shape = np.broadcast_shapes(*(x.lo.shape for x in box.coordinates.values()))
    low, high = (np.broadcast_to(x, shape).reshape(-1) for x in (found.lo, found.hi))
    env = {"t": TABLE, "grid": GRID, "keep": TABLE > 1}
    tight = 0
    for n, ((a, b), (c, d)) in enumerate(every):
        values = evaluate(e, env | {"i": np.arange(a, b + 1)[:, None], "j": np.arange(c, d + 1)[None]})
        assert low[n] <= np.min(values)
        assert high[n] >= np.max(values)
        assert max(abs(int(low[n])), abs(int(high[n]))) <= found.bound
        tight += bool(low[n] == np.min(values) and high[n] == np.max(values))
    if text in ("i - j", "3 * i - 2 * j", "i * j - 3", "i // (j + 1)"):
        assert tight == len(every)
    assert tight > 0.2 * len(every)


def test_exact_intervals_stay_exact() -> None:
    box = Box({"i": interval(np.arange(5))}, {"t": Table(TABLE)}, types)
    found = box.form(affine(number("3 * i - t[i] + i // 2")))
    assert found is not None
    assert found.exact


@pytest.mark.parametrize(
    "text", ["sin(1.0 * i) + 1.0", "missing[i]", "i // (j - 3)", "i % (0 - 4)", "i * 4611686018427387904", "h"]
)
def test_what_no_rule_covers_is_unknown(text: str) -> None:
    box, _ = boxes()
    assert box.form(affine(number(text))) is None


def test_magnitudes_are_bounded_before_they_overflow() -> None:
    box = Box({"i": interval(0, LIMIT - 1), "j": interval(0, LIMIT - 1)}, {}, types)
    assert box.form(affine(number("i"))) is not None
    assert box.form(affine(number("i + j"))) is None
    assert box.form(affine(number("i * j"))) is None
    assert possible(predicate(mask("i + j < 0"), types), box)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_range_extremes_of_a_table() -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(-99, 99, 200)
    ends = np.sort(rng.integers(-5, 205, (2, 400)), 0)  # beyond both ends of the table too
    found = Table(data).query([interval(ends[0], ends[1])])
    assert found is not None
    for n, (a, b) in enumerate(ends.T):
        values = data[np.clip(np.arange(a, b + 1), 0, 199)]
        assert (found.lo[n], found.hi[n]) == (values.min(), values.max())


def test_a_table_of_several_axes_is_asked_along_each() -> None:
    """grid[b, r, c]: a point of b, an interval that varies with the row tile and one that varies with the column tile."""
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 1000, (3, 20, 30))
    b = interval(np.arange(3)[:, None, None])
    rows, columns = np.array([(0, 4), (3, 3), (7, 19)]), np.array([(0, 29), (5, 8), (28, 40), (2, 2)])
    index = [b, interval(rows[None, :, :1], rows[None, :, 1:]), interval(columns[None, None, :, 0], columns[None, None, :, 1])]
    found = Table(grid).query(index)
    assert found is not None
    for x, (n, (r, s)), (m, (c, d)) in product(range(3), enumerate(rows), enumerate(columns)):
        part = grid[x, r : s + 1, min(c, 29) : d + 1]
        assert (found.lo[x, n, m], found.hi[x, n, m]) == (part.min(), part.max())


def test_only_the_part_of_a_table_that_is_asked_for_is_looked_at() -> None:
    """What lies beside it is too large to be reasoned about."""
    rng = np.random.default_rng(0)
    part = rng.integers(0, 1000, (4, 30))
    grid = np.full((40, 90), 2**62)
    grid[33:37, 20:50] = part
    rows, columns = (
        interval(np.array([[33], [34]]), np.array([[34], [36]])),
        interval(np.array([[20, 25]]), np.array([[24, 49]])),
    )
    found = Table(grid).query([rows, columns])
    assert found is not None
    for n, (a, b) in enumerate(((0, 2), (1, 4))):
        for m, (c, d) in enumerate(((0, 5), (5, 30))):
            assert (found.lo[n, m], found.hi[n, m]) == (part[a:b, c:d].min(), part[a:b, c:d].max())
    assert Table(grid).query([interval(0), columns]) is None


def test_a_table_across_both_axes_of_the_box_falls_back_to_its_range() -> None:
    lo = np.arange(6)[:, None] + np.arange(4)[None]
    found = Table(GRID).query([interval(lo, lo + 1), interval(lo, lo + 2)])
    assert found is not None
    assert (found.lo, found.hi) == (GRID.min(), GRID.max())


def test_empty_and_enormous_tables_are_unknown() -> None:
    zero = interval(0)
    assert Table(np.zeros(0, int)).query([zero]) is None
    assert Table(np.array([2**63], np.uint64)).query([zero]) is None


# -- predicates --------------------------------------------------------------------------------------------------------

PREDICATES = ["j <= i and i - j < 4", "not (j <= i and i - j < 4)", "i // 3 == j // 3 or i % 3 != j % 2", "abs(i - j) <= 3"]
PREDICATES += ["not abs(i - j) <= 3", "abs(i - j) == 3", "max(i, j) < min(7, i + 2)", "select(i < 5, j < 3, j > 3)"]
PREDICATES += [
    "(i < 5) == (j < 3)",
    "(i < 5) != keep[j]",
    "int(i < j) + int(j < 5) == 1",
    "not (keep[i] and keep[j])",
    "t[i] > t[j]",
]
PREDICATES += [
    "j // 4 < i // 4 or (i // 4 == j // 4 and j % 4 <= i % 4)",
    "(i - 2 * j) % 3 == 1",
    "2 * i == 4 * j + 1",
    "not true or i < 3",
]
PREDICATES += ["select(i < j, i, 2 * j) <= abs(3 - max(i, j))", "i != j and (i == j or i < 4)"]


def holds(p: Predicate, env: Mapping[str, object]) -> np.ndarray:
    """A normal form at points."""
    if isinstance(p, All | Any):
        out = np.full((12, 9), isinstance(p, All))
        for q in p.parts:
            out = out & holds(q, env) if isinstance(p, All) else out | holds(q, env)
        return out
    assert not isinstance(p, Unknown)
    value = np.broadcast_to(evaluate(p.form.expr, env), (12, 9))
    return value >= 0 if isinstance(p, Ge) else value == 0


@pytest.mark.parametrize("negate", [False, True])
@pytest.mark.parametrize("text", PREDICATES)
def test_normal_forms_of_predicates_keep_their_truth(text: str, negate: bool) -> None:
    e = mask(text)
    env = {"t": TABLE, "keep": TABLE > 1, "i": np.arange(12)[:, None], "j": np.arange(9)[None]}
    truth = np.broadcast_to(evaluate(e, env), (12, 9)).astype(bool) != negate
    p = predicate(e, types, negate)
    assert (holds(p, env) == truth).all()
    opened = clauses(p)
    assert opened is not None
    assert (holds(Any(tuple(map(All, opened))), env) == truth).all()
    for clause in opened:
        here = holds(All(clause), env)
        assert solvable(clause) or not here.any()
        for form in consequences(clause):
            assert (np.broadcast_to(evaluate(form.expr, env), (12, 9))[here] >= 0).all(), show_expr(form.expr)


def test_consequences_meet_quotients_and_coordinates() -> None:
    """The lexicographic order of (i // 48, i % 48) is the order of i."""
    (first, second) = clauses(predicate(mask("j // 48 < i // 48 or (i // 48 == j // 48 and j % 48 <= i % 48)"), types)) or ()
    assert "i - j - 1" in {show_expr(f.expr) for f in consequences(first)}
    assert "i - j" in {show_expr(f.expr) for f in consequences(second)}


def test_contradictions_and_covered_clauses_are_dropped() -> None:
    assert clauses(predicate(mask("j <= i and j > i"), types)) == ()
    assert clauses(predicate(mask("j <= i or (j <= i and j < 5)"), types)) == clauses(predicate(mask("j <= i"), types))


def test_equations_without_solutions() -> None:
    assert not solvable((Eq(affine(number("4 * i - 2 * j + 3"))),))
    assert solvable((Eq(affine(number("4 * i - 6 * j + 2"))),))


def test_too_many_clauses_are_none() -> None:
    p = predicate(mask(" and ".join(f"(i != {k} or j < {k})" for k in range(9))), types)
    assert clauses(p) is None


@pytest.mark.parametrize("text", ["0.5 * i < 3.0", "x[i] < x[j]", "missing[i]", "1.0 * i == j"])
def test_what_is_not_of_integers_is_unknown(text: str) -> None:
    assert isinstance(predicate(mask(text), types), Unknown)
    assert isinstance(predicate(mask(text), types, True), Unknown)
