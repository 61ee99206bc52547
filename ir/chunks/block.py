"""`Block`: the statements of a block of points under construction. A pair of points is two ranks, one's own and an earlier one's."""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.expr import call
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold
from einfuse.ir.order import CycleError, by_level
from einfuse.ir.recurrence import NotLinearError
from einfuse.ir.rewrite import fresh


class Block:
    """The points of a block of ``scan``, ``step`` of them once that is known: the rank ``i``, and ``other`` for the other point of a pair."""

    def __init__(self, cascade: Cascade, scan: Fold) -> None:
        self.scan, self.i, self.step = scan, scan.rank, 0
        self.points = frozenset({scan.rank, *cascade.over})  # the ranks that are no features
        self.ambient = frozenset(cascade.over)
        self.taken = {*(r.name for r in cascade.ranks), *(t.name for t in cascade.inputs), *(y.target for y in scan.body)}
        own = cascade.rank(scan.rank)
        self.other = replace(own, name=fresh(f"{self.i}_2", self.taken))
        at = cascade.ranks.index(own) + 1
        self.ranks = (*cascade.ranks[:at], self.other, *cascade.ranks[at:])
        self.body: list[Einsum] = []
        self.known: dict[object, str] = {}

    def named(
        self, base: str, ranks: set[str], red: str | None, over: tuple[str, ...], e: Expr, mask: Expr | None = None
    ) -> Expr:
        """A statement with this value (one for equal values), read at its own ranks."""
        held = tuple(r.name for r in self.ranks if r.name in ranks - self.ambient)
        key = (held, red, over, e, mask)
        if key not in self.known:
            self.known[key] = fresh(base, self.taken)
            self.body.append(Einsum(self.known[key], held, red, over, e, mask, self.scan.loc))
        return ex.at(self.known[key], held)

    def map(self, base: str, ranks: set[str], e: Expr, mask: Expr | None = None) -> Expr:
        """A statement without a reduction, over these ranks and the points."""
        return self.named(base, ranks | {self.i}, None, (), e, mask)

    def there(self, e: Expr) -> Expr:
        """``e`` at the other point of a pair."""
        return ex.rename(e, {self.i: ex.index(self.other.name)})

    def other_is(self, op: str) -> Expr:
        """The condition that the other point of a pair is before, at or after one's own."""
        return call(op, ex.index(self.other.name), ex.index(self.i))

    def ordered(self) -> list[Einsum]:
        """The statements in dependence order."""
        try:
            return by_level(self.body, lambda x: ex.reads(x.map) | ex.reads(x.mask))
        except CycleError as error:
            raise NotLinearError("the states of the scan need each other") from error
