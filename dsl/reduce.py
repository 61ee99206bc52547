"""Reductions: ``red[ranks](value where condition)`` becomes a statement of its own, read where it stood."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from einfuse.dsl import ast
from einfuse.dsl.emit import load_held, mask_of, reduction_name
from einfuse.dsl.select import chosen
from einfuse.dsl.values import Value, apply, constant, extent, join, merged
from einfuse.ir import REDUCERS, Einsum, SpecError, conjunction, const
from einfuse.ir.expr import indices

if TYPE_CHECKING:
    from einfuse.dsl.evaluate import Evaluator


class Reducer:
    """Makes the reductions that are met ``at`` an evaluator."""

    def __init__(self, at: Evaluator) -> None:
        self.at = at

    def _over(self, e: ast.Call) -> tuple[str, ...]:
        over = tuple(self.at.rank(r) for r in e.ranks or ())
        for n, (r, node) in enumerate(zip(over, e.ranks or (), strict=True)):
            if r in over[:n]:
                raise self.at.fault(f"the rank `{r}` is reduced twice", node)
            if r in self.at.ambient:
                raise self.at.fault(
                    f"`{r}` is ambient and cannot be reduced: every point of it is computed alone",
                    node,
                    f"take `{r}` out of `over` and declare it: rank {r}: head",
                )
        return over

    def value(self, e: ast.Call) -> Value:
        name = e.name.text
        over = self._over(e)
        if name in REDUCERS and REDUCERS[name].chooses:
            return chosen(self.at, e, over)
        if e.slot is not None:
            raise self.at.fault(f"`{name}` makes no slots", e.slot, "only topk[w -> n](x) does")
        if len(e.args) != 1:
            raise self.at.fault(f"the reducer `{name}` takes one operand, found {len(e.args)}", e)
        body = self.at.value(e.args[0])
        where = self.at.condition(e.where) if e.where is not None else None
        occurring = body.ranks | (where.ranks if where is not None else frozenset())
        for r, node in zip(over, e.ranks or (), strict=True):
            if r not in occurring:
                raise self.at.fault(
                    f"the rank `{r}` does not occur in what is reduced over it",
                    node,
                    f"the number of its points is size({r}), of those where a condition holds count[{r}](condition)",
                )
        self.at.reduced |= set(over)
        if name == "any":
            return self._any(over, body, where, e)
        if name == "count":
            if body.dtype == "bool":  # the points where it holds
                where = body if where is None else apply("and", (where, body), self.at.place(e))
            return self._count(over, body, where, e)
        if name == "mean":
            total = self._reduced("sum", over, body, where, e)
            return self._row(apply("/", (total, self._count(over, body, where, e)), self.at.place(e)), e)
        return self._reduced(name, over, body, where, e)

    def _reduced(self, red: str, over: tuple[str, ...], body: Value, where: Value | None, e: ast.Call) -> Value:
        assert REDUCERS[red].monoid, f"{red} is no reducer of the IR"
        if len(over) > 1 and len(self._kinds(over)) > 1:
            return self._nested(red, over, body, where, e)
        if body.dtype == "bool":
            raise self._unfit(red, "numbers", "a condition", "write any[j](condition), or sum[j](int(condition))", e)
        mask = mask_of(where, body)
        whole = join((body, where)) if where is not None else body
        ranks = self.at.emitter.sorted(whole.ranks - set(over) - self.at.ambient)
        name = reduction_name(red, body, self.at.target)
        statement = Einsum(name, ranks, red, over, body.expr, mask, self.at.place(e))
        return load_held(self.at.emitter.unnamed(statement, body)).at(self.at.place(e))

    def _unfit(self, red: str, wanted: str, found: str, hint: str, e: ast.Call) -> SpecError:
        return self.at.fault(f"`{red}` reduces {wanted}, found {found}", e, hint)

    def _any(self, over: tuple[str, ...], body: Value, where: Value | None, e: ast.Call) -> Value:
        """Whether a condition holds anywhere: the largest of its ones and noughts is above 0. Of nothing it is minus infinity."""
        if body.dtype != "bool":
            raise self._unfit("any", "conditions", "a number", "compare the number with something", e)
        most = self._reduced("max", over, apply("float", (body,), self.at.place(e)), where, e)
        return apply(">", (most, constant(0.0)), self.at.place(e))

    def _kinds(self, over: tuple[str, ...]) -> list[tuple[str, ...]]:
        """Ranks that one reduction can take together: all features, each sequence rank alone; features first."""
        whole = tuple(r for r in over if self.at.frame.kinds[r] in ("feature", "state"))
        return [g for g in (whole, *((r,) for r in over if r not in whole)) if g]

    def _nested(self, red: str, over: tuple[str, ...], body: Value, where: Value | None, e: ast.Call) -> Value:
        """One reduction inside the other: what each reduces is pointwise in the ranks of the next."""
        first, *rest = self._kinds(over)
        value = self._reduced(red, first, body, where, e)
        for ranks in rest:
            value = self._reduced(red, ranks, value, None, e)
        return value

    def _row(self, mean: Value, e: ast.Call) -> Value:
        """A mean has a name, so that what is computed from it can move with it (Chan's merge) and not with the sum and the count."""
        ranks = self.at.emitter.sorted(mean.ranks - self.at.ambient)
        statement = Einsum("mean", ranks, None, (), mean.expr, mask_of(None, mean), self.at.place(e))
        return load_held(self.at.emitter.unnamed(statement, mean)).at(self.at.place(e))

    def _count(self, over: tuple[str, ...], body: Value, where: Value | None, e: ast.Call) -> Value:
        """The number of existing points: the size of the ranks where no condition mentions them."""
        conditions = merged((*body.space, *((where.expr, *where.space) if where is not None else ())))
        bounds = [p for p in conditions if indices(p) & set(over)]
        if not bounds:
            out = extent(self.at.frame.extents[over[0]])
            for r in over[1:]:
                out = apply("*", (out, extent(self.at.frame.extents[r])), self.at.place(e))
            return dataclasses.replace(out, dtype="float", ranks=(body.ranks - set(over)), space=conditions)
        every = frozenset().union(*(indices(p) for p in conditions))
        mask = conjunction(*conditions)
        statement = Einsum(
            "count", self.at.emitter.sorted(every - set(over) - self.at.ambient), "sum", over, const(1), mask, self.at.place(e)
        )
        return load_held(self.at.emitter.unnamed(statement, constant(1))).at(self.at.place(e))
