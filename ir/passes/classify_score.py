"""What kind of number a score is: the facts about the values of all pairs that decide how they can be computed.

    qk[i, j] = sum[d] q[i, d] * k[j, d]                   products   qk: bilinear   (two groups of factors meet only in d)
    s[i, j] = qk[i, j] / 8 - slope * (i - j)       ->     degree 1   affine in its products
                                                          position   linear
    ...                                                   tables     none
                                                          bounded    no

A *score* is a value over two sequence ranks that a reduction over one of them reads. Only a bilinear product feeds matrix units; only an
affine score lets constants move into its scale; what is linear in positions costs one number a row, and what is a function of the offset
alone one diagonal a tile. Nothing is changed: the result is a record for `explain`, and `operands` is the rule that `lower` applies.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from einfuse.ir import expr as ex
from einfuse.ir.affine import affine
from einfuse.ir.definitions import Definitions
from einfuse.ir.errors import TooLargeError
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.nodes import Einsum, Expr, Flat
from einfuse.ir.offsets import of_difference

Kind = Literal["bilinear", "distance", "additive", "general"]
Position = Literal["none", "linear", "offset", "free"]


@dataclass(frozen=True, slots=True)
class Product:
    """A contraction over features with a value for every pair.

    ``kind``: ``bilinear`` (left rows times right rows), ``distance`` (a function of differences), ``additive`` (a function of sums of a
    left and a right vector), or ``general`` (no such form).
    """

    name: str
    kind: Kind

    @property
    def on_matrix_units(self) -> bool:
        return self.kind == "bilinear"


@dataclass(frozen=True, slots=True)
class Score:
    """One score: its products; its degree as a polynomial in them (None: no polynomial); how it depends on positions beside the
    condition of its points (not, ``linear``, through the ``offset`` j - i alone, or ``free``); the inputs that it reads at computed
    places; and whether its form bounds it."""

    name: str
    ranks: tuple[str, str]
    products: tuple[Product, ...]
    degree: int | None
    position: Position
    tables: tuple[str, ...]
    bounded: bool


def run(cascade: Flat) -> tuple[Score, ...]:
    """The scores of a canonical cascade, in order."""
    return _Classifier(cascade).run()


def operands(dims: Sequence[Collection[str]], rank: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] | None:
    """The factors (by number) of a sum over ``rank`` that is a matrix product: two groups with one rank beside it each, not the same, and
    the weights that have ``rank`` alone (they can go with either).

    ``dims`` holds the ranks of every factor; factors without ``rank`` stay outside. None where the sum is no matrix product.
    """
    groups: dict[frozenset[str], list[int]] = {}
    for n, d in enumerate(dims):
        if rank in d:
            groups.setdefault(frozenset(d) - {rank}, []).append(n)
    weights = groups.pop(frozenset(), [])
    if len(groups) != 2 or any(len(g) != 1 for g in groups):
        return None
    left, right = groups.values()
    return tuple(left), tuple(right), tuple(weights)


class _Classifier:
    def __init__(self, cascade: Flat) -> None:
        self.c = cascade
        self.over = set(cascade.over)
        self.sequence = {r.name for r in cascade.ranks if r.is_sequence} - self.over
        self.einsums = {x.target: x for x in cascade.einsums}
        self.inputs = {t.name: t for t in cascade.inputs}
        self.definitions = Definitions(x for x in self.einsums.values() if x.red is None and self._pair(x))

    def run(self) -> tuple[Score, ...]:
        read = [n for x in self.einsums.values() if set(x.over) & self.sequence for n in sorted(ex.reads(x.map))]
        names = [n for n in self.einsums if n in read and self._pair(self.einsums[n])]
        return tuple(self._score(self.einsums[n]) for n in names)

    def _pair(self, x: Einsum) -> bool:
        return len(set(x.ranks) & self.sequence) == 2 and not set(x.over) & self.sequence

    def _score(self, x: Einsum) -> Score:
        e = self._written_out(ex.at(x.target, x.ranks))
        i, j = (r for r in x.ranks if r in self.sequence)
        names = list(dict.fromkeys(y.name for y in ex.walk(e) if y.op == "load" and y.name in self.einsums))
        products = tuple(Product(n, self._kind(self.einsums[n])) for n in names if self._contracted(n))
        made = {p.name for p in products}
        return Score(
            x.target, (i, j), products, _degree(e, made), self._position(e, i, j), self._tables(e), _bounded(e, {i, j})
        )

    def _contracted(self, name: str) -> bool:
        x = self.einsums[name]
        return x.red is not None and self._pair(x)

    def _written_out(self, e: Expr) -> Expr:
        """Without names for what is pointwise in the pair, unless that is too large: products, row values and inputs are left."""
        try:
            return self.definitions.into(e)
        except TooLargeError:
            return e

    # -- one product ---------------------------------------------------------------------------------------------------------

    def _kind(self, x: Einsum) -> Kind:
        e = self._written_out(x.map)
        parts = [f for side in ex.quotient(e) for f in side]
        free = [ex.indices(f) - self.over for f in parts]
        if x.reducer.sums and len(x.over) == 1 and operands(free, x.over[0]) is not None:
            return "bilinear"
        meets = {y.op for y in _outside_reads(e) if self._meets(y)}
        return "distance" if meets == {"-"} else "additive" if meets == {"+"} else "general"

    def _meets(self, e: Expr) -> bool:
        """Is this the operation at which the two ranks of a pair come together?"""
        mine = [ex.indices(a) & self.sequence for a in e.args]
        return e.op != "load" and len(set().union(*mine)) > 1 and all(len(m) < 2 for m in mine)

    # -- what else it depends on ---------------------------------------------------------------------------------------------

    def _position(self, e: Expr, i: str, j: str) -> Position:
        terms = [t for t in _terms(e) if self._positional(t, i, j)]
        if not terms:
            return "none"
        if all(self._linear(t, i, j) for t in terms):
            return "linear"
        return "offset" if all(of_difference(t, i, j) for t in terms) else "free"

    def _positional(self, e: Expr, i: str, j: str) -> bool:
        """Does it compute with coordinates (beyond reading something at them)?"""
        if e.op == "load":
            own = e.name in self.einsums or all(a.op == "index" or not ex.indices(a) & {i, j} for a in e.args)
            return not own
        return (e.op == "index" and e.name in (i, j)) or any(self._positional(a, i, j) for a in e.args)

    def _linear(self, e: Expr, i: str, j: str) -> bool:
        """A factor that is affine in the coordinates, times what does not depend on them."""
        over, under = ex.quotient(e)
        mine = [f for f in over if self._positional(f, i, j)]
        if len(mine) != 1 or any(self._positional(f, i, j) for f in under):
            return False
        (f,) = mine
        inner = f.args[0] if f.op == "float" else f
        atoms = [a for a, _ in affine(inner).terms]
        return all(a.op == "index" or not self._positional(a, i, j) for a in atoms)

    def _tables(self, e: Expr) -> tuple[str, ...]:
        """The inputs that are read at computed places: those with an index that is no coordinate and no part of a head."""
        plain = ("index", "const", "size", "//")
        loads = [y for y in ex.walk(e) if y.op == "load" and y.name in self.inputs]
        return tuple(dict.fromkeys(y.name for y in loads if any(a.op not in plain for a in y.args)))


def _outside_reads(e: Expr) -> Iterator[Expr]:
    """The sub-expressions that are values, not indices."""
    yield e
    if e.op != "load":
        for a in e.args:
            yield from _outside_reads(a)


def _terms(e: Expr) -> Iterator[Expr]:
    if e.op in ("+", "-", "neg"):
        for a in e.args:
            yield from _terms(a)
    else:
        yield e


def _degree(e: Expr, products: set[str]) -> int | None:
    """The degree of ``e`` as a polynomial in what it loads of ``products``."""
    if not ex.reads(e) & products:
        return 0
    if e.op == "load":
        return 1
    parts = [_degree(a, products) for a in e.args]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return None
    if e.op in ("+", "-", "neg", "float"):
        return max(known)
    if e.op == "*":
        return sum(known)
    if e.op == "/" and known[1] == 0:
        return known[0]
    power = e.args[-1].value
    return known[0] * power if e.op == "^" and isinstance(power, int) and power > 0 and known[1] == 0 else None


def _bounded(e: Expr, pair: set[str]) -> bool:
    """Does the form alone bound it, for given numbers (all that depends on neither position)?"""
    if not ex.indices(e) & pair or (e.op in FUNCTIONS and all(map(math.isfinite, FUNCTIONS[e.op].limits))):
        return True
    inside = [_bounded(a, pair) for a in e.args]
    if e.op in ("+", "-", "*", "neg", "abs", "float"):
        return all(inside)
    if e.op == "/":
        return inside[0] and not ex.indices(e.args[1]) & pair
    if e.op == "select":
        return all(inside[1:])
    if e.op in ("min", "max"):  # min(max(x, lo), hi): one side from each
        other = "max" if e.op == "min" else "min"
        held = any(a.op == other and any(_bounded(b, pair) for b in a.args) for a in e.args)
        return all(inside) or (any(inside) and held)
    return False
