"""When may a reduction run before the statistics it depends on are complete?

A reduction over j whose map is ``f(x_j; d)`` for an earlier statistic ``d`` of the same rank can share d's pass iff f is a finite
sum of products ``g_k(x) h_k(d)``. The *decision* is numerical: the rank of ``f(x_a; d_b)`` at random points (SVD, float64). The
*construction* is algebra, by evaluation at one point x0: the correction ``c(d, d') = f(x0; d') / f(x0; d)``. It is proven by sympy
where sympy can, and always checked numerically at two ranges. For ``f(x - d)`` the maps that qualify are exactly the exponential
polynomials (Levi-Civita), so a cut is a fact about the map and not a want of cleverness. `symbols` says what sympy sees of a map.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Expr
from einfuse.ir.symbols import Atoms as Atoms
from einfuse.ir.symbols import NotSeparable as NotSeparable
from einfuse.ir.symbols import nonnegative as nonnegative
from einfuse.ir.symbols import prime as prime

if TYPE_CHECKING:
    import numpy as np
    import sympy as sp
else:
    from einfuse.ir.symbols import np, sp

MAX_RANK = 4
MAX_OPERATIONS, MAX_DEPTH = 2_000, 100
"""Of a map that algebra looks into: sympy takes more than linear time, and several frames of Python a level."""
SAMPLES = 24
SHORT = 12  # operations of an expression that needs no further search for a shorter one
RANGE = 12.0  # where zeros of a factor are looked for
TOLERANCE = 1e-10


def within_reach(e: Expr) -> bool:
    """Whether a map is small enough for algebra."""
    return e.operations <= MAX_OPERATIONS and e.depth <= MAX_DEPTH


@functools.lru_cache(1024)  # of nine expressions eight were looked at before: specs differ less than their maps
def _compiled(symbols: tuple[Any, ...], e: Any) -> Callable[..., Any]:
    """``e``, or a tuple of such, as a function of arrays. A branch that divides by 0 is not a number."""
    e = [z.xreplace({sp.zoo: sp.nan}) for z in e] if isinstance(e, tuple) else e.xreplace({sp.zoo: sp.nan})
    known = {
        **{f.sympy: f.of(np) for f in FUNCTIONS.values() if isinstance(f.sympy, str) and callable(f.numpy)},  # numpy has none
        "select": _select,
        "logical_and": _Joined(np.logical_and),
        "logical_or": _Joined(np.logical_or),
    }
    printer = _printer()(_OPTIONS | {"user_functions": {name: name for name in known}})
    return sp.lambdify(symbols, e, [known, "numpy"], printer=printer)  # type: ignore[no-any-return]


_OPTIONS = {"fully_qualified_modules": False, "inline": True, "allow_unknown_functions": True}
"""Those that `sympy.lambdify` gives a printer of its own."""


@functools.cache
def _printer() -> Callable[[Mapping[str, Any]], Any]:
    """The class of printers that leave conditions as they are: `NumPyPrinter` simplifies those that choose between conditions, for minutes."""
    from sympy.printing.numpy import NumPyPrinter

    class Printer(NumPyPrinter):  # type: ignore[misc]
        def _print_Piecewise(self, e: Any) -> str:
            values, conditions = (", ".join(map(self._print, x)) for x in zip(*e.args, strict=True))
            return f"select([{conditions}], [{values}])"

        def _print_ITE(self, e: Any) -> str:
            condition, a, b = map(self._print, e.args)
            return f"select([{condition}], [{a}], {b})"

    return Printer


class _Joined:
    """`numpy.logical_and` or `logical_or` whose ``reduce`` takes parts of several shapes."""

    def __init__(self, join: Callable[[Any, Any], Any]) -> None:
        self.join = join

    def reduce(self, parts: Iterable[Any]) -> Any:
        return functools.reduce(self.join, parts)


def _select(conditions: list[Any], values: list[Any], default: float = float("nan")) -> Any:
    """`numpy.select` that also takes conditions which are the same everywhere."""
    out = np.asarray(default, float)
    for c, v in zip(reversed(conditions), reversed(values), strict=True):
        out = np.where(c, v, out)
    return out


def matrix_rank(matrix: np.ndarray) -> int:
    """The numerical rank of a matrix of samples; 99 where one is not finite."""
    if not np.isfinite(matrix).all():
        return 99
    values = np.linalg.svd(matrix, compute_uv=False)
    return 0 if values[0] == 0 else int((values > TOLERANCE * values[0]).sum())


@dataclass(slots=True)
class Sampler:
    """Random points for the rank test; a fixed seed, so that a compilation never depends on luck twice."""

    positive: set[Any]
    row: set[Any] = field(default_factory=set)  # symbols that are the same at every point of the reduced rank
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(20260101))

    def points(self, symbol: Any, count: int) -> np.ndarray:
        return self.rng.uniform(0.3, 2.5, count) if symbol in self.positive else self.rng.uniform(-2.2, 2.2, count)

    def rank(self, f: Any, d: Any) -> int:
        """Numerical rank of f as a matrix over the element's symbols x d; 99 where f is not finite on the samples.

        Symbols of the row are constants of a matrix: two matrices are looked at, and whatever is built is checked where they vary.
        """
        return max(self._rank_once(f, d) for _ in range(2 if f.free_symbols & self.row else 1))

    def _rank_once(self, f: Any, d: Any) -> int:
        others = sorted(f.free_symbols - {d}, key=str)
        fn = _compiled((*others, d), f)
        rows = [self.points(x, 1 if x in self.row else SAMPLES)[:, None] for x in others]
        columns = self.points(d, SAMPLES)[None, :]
        with np.errstate(all="ignore"):
            matrix = np.broadcast_to(np.asarray(fn(*rows, columns), float), (SAMPLES, SAMPLES) if others else (1, SAMPLES))
        return matrix_rank(matrix)

    def at_point(self, f: Any, d: Any, keep: Collection[Any] = ()) -> Any:
        """f as a function of d (and of the symbols to ``keep``), at a point of the others where it does not vanish."""
        others = sorted(f.free_symbols - {d, *keep}, key=str)
        for start, step in ((1, 0), (2, 0), (sp.Rational(1, 2), 0), (-1, 0), (3, 0), (1, 1), (3, -1)):
            e = f.subs({x: start + n * step for n, x in enumerate(others)})
            symbols = sorted(e.free_symbols | {d}, key=str)
            with np.errstate(all="ignore"):
                y = np.asarray(_compiled(tuple(symbols), e)(*(self.points(x, 7) for x in symbols)), float) * np.ones(7)
            if np.isfinite(y).all() and (np.abs(y) > 1e-9).all():
                return self._without_dead_branches(e, d)
        raise NotSeparable(f"{f} vanishes at every trial point")

    def vanishes(self, f: Any, d: Any) -> bool:
        """Is f, as a function of d, 0 somewhere in the range of d (or of both signs)? Raises NotSeparable where f is 0 everywhere."""
        h = self.at_point(f, d)
        points = np.linspace(0 if d in self.positive else -RANGE, RANGE, 2 * SAMPLES + 1)
        with np.errstate(all="ignore"):
            y = np.asarray(_compiled((d,), h)(points), float) * np.ones(len(points))
        y = y[np.isfinite(y)]
        return bool((y == 0).any() or ((y > 0).any() and (y < 0).any()))

    def _without_dead_branches(self, e: Any, d: Any) -> Any:
        """max(0, z) -> z or 0 and |z| -> +-z where z keeps one sign over the range of d."""
        replacements, points = {}, self.points(d, 50)
        for q in e.atoms(sp.Max, sp.Abs):
            inner = [z for z in q.args if z != 0]
            if len(inner) == 1:
                if inner[0].free_symbols - {d}:
                    continue  # its sign may depend on the row
                y = np.asarray(_compiled((d,), inner[0])(points), float) * np.ones(50)
                if (y > 0).all():
                    replacements[q] = inner[0]
                elif (y < 0).all():
                    replacements[q] = -inner[0] if q.func is sp.Abs else sp.Integer(0)
        return e.xreplace(replacements)

    def holds(self, lhs: Any, rhs: Any) -> bool:
        """Are the two sides equal on random points of two ranges?"""
        symbols = sorted(lhs.free_symbols | rhs.free_symbols, key=str)
        sides = _compiled(tuple(symbols), (lhs, rhs))
        for scale in (1.0, 3.0):
            with np.errstate(all="ignore"):
                a, b = sides(*[scale * self.points(x, 200) for x in symbols])
            a, b = np.broadcast_arrays(np.asarray(a, float), np.asarray(b, float))
            finite = np.isfinite(a) & np.isfinite(b)
            if not np.allclose(a[finite], b[finite], rtol=1e-9, atol=1e-12) or not finite.any():
                return False
        return True


def exponential(e: Any) -> Any:
    """exp(e): rank one exactly where e is a sum of a part in x and a part in d."""
    return sp.exp(e)


@functools.lru_cache(256)
def tidy(e: Any) -> Any:
    """Simplified, where that is surely quick: `sympy.simplify` tries everything it has, and first imports it (0.3 s)."""
    if not _quick(e, 60):
        return e
    short = sp.powsimp(sp.factor(e))
    return short if sp.count_ops(short) <= SHORT else sp.powsimp(sp.simplify(e))


@functools.lru_cache(256)
def proven(lhs: Any, rhs: Any) -> bool:
    """Does sympy see that the two are the same function? (False means: it did not.)"""
    if sp.expand(_absorbed(lhs) - _absorbed(rhs)) == 0:
        return True  # most corrections: a hundred times cheaper than to simplify
    difference = sp.powsimp(lhs - rhs, combine="base")  # (a / b)^p (b / c)^p meet
    return bool(difference == 0 or (_quick(difference, 120) and sp.simplify(difference) == 0))


def _quick(e: Any, most: int) -> bool:
    """Whether `sympy.simplify` is surely quick: fewer operations than ``most``, and no condition that chooses between conditions."""
    return bool(sp.count_ops(e) < most) and not e.has(sp.ITE)


def _absorbed(e: Any) -> Any:
    """``p max(a, b)`` as ``max(p a, p b)`` and ``p |a|`` as ``|p a|`` for positive p: there exponentials meet and cancel."""

    def absorb(product: Any) -> Any:
        bounded = next((a for a in product.args if isinstance(a, sp.Max | sp.Min | sp.Abs)), None)
        positive = sp.Mul(*(a for a in product.args if a is not bounded and a.is_positive))
        if bounded is None or positive == 1:
            return product
        return bounded.func(*(sp.expand(positive * a) for a in bounded.args)) * (product / positive / bounded)

    return e.replace(lambda x: x.is_Mul, absorb)


def tower(sampler: Sampler, f: Any, d: Any, limit: int = 8) -> list[Any] | None:
    """f and its derivatives in d, if f is a polynomial in d: together they are closed under moving d (Chan's merge).

    A threshold has a derivative of 0 almost everywhere and is no polynomial: the rank decides, as everywhere.
    """
    if not f.is_polynomial(d) or sampler.rank(f, d) > limit:
        return None
    out = [f]
    while out[-1] != 0 and len(out) < limit:
        out.append(sp.expand(sp.diff(out[-1], d)))
    return out[:-1] if out[-1] == 0 else None


def rank_one_terms(sampler: Sampler, f: Any, d: Any) -> list[Any]:
    """f as at most MAX_RANK terms of rank one in d. Raises NotSeparable."""
    if sampler.rank(f, d) <= 1:
        return [f]
    groups: list[Any] = []
    for term in sp.Add.make_args(sp.expand(f)):
        for n, group in enumerate(groups):
            if sampler.rank(group + term, d) <= 1:
                groups[n] = group + term
                break
        else:
            groups.append(term)
    if len(groups) > MAX_RANK or any(sampler.rank(g, d) > 1 for g in groups):
        raise NotSeparable(f"{f} has no finite rank in {d}")
    return groups


def symbols_of(expressions: Iterable[Any]) -> set[Any]:
    return set().union(*(e.free_symbols for e in expressions))
