"""The keys of items in parts: each takes an equal share of the keys of its own item, and states may lie by rows.

    part n of 4 of an item:   bounds[n, 0] <= j < bounds[n, 1]   ->   tokens * n // 4 <= j < tokens * (n + 1) // 4
    a state of rows:          out m                              ->   out m[T + 1, h_groups, 4, 2] at [row, h_group, part, i % 2]

Where items of several lists see parts of the keys of one row, their states come together by rows: as `merged` of items of one row reads
them. What belongs to no row is written behind the last.
"""

from __future__ import annotations

from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.expr import call
from einfuse.ir.nodes import Expr, Flat, Place
from einfuse.ir.passes import items, split
from einfuse.ir.passes.items import Items
from einfuse.ir.rewrite import map_expressions


def run(cut: split.Split, form: Items, parts: int, after: bool = False) -> Flat:
    """`Split.partial` of the cascade of items, in that many parts of the tokens of each; ``after``: of those behind the first ones.

    Raises SpecError for one whose keys are no tokens.
    """
    if form.cascade.rank(cut.rank).size != form.keys:
        raise SpecError(
            f"{form.cascade.name} cannot be shared out: {cut.rank} counts other things than tokens", form.cascade.loc
        )
    item = ex.index(form.cascade.over[0])
    bounds = cut.partial.inputs[-1].name
    tokens, first = (ex.load(form.listed, ex.const(n), item) for n in (items.TOKENS, items.FIRST))

    def share(e: Expr) -> Expr | None:
        if e.op != "load" or e.name != bounds:
            return None
        part, end = e.args
        many = call("-", tokens, first) if after else tokens
        mine = call("//", call("*", many, call("+", part, end)), ex.const(parts))
        return call("+", first, mine) if after else mine

    moved = map_expressions(cut.partial, lambda e: ex.substitute(e, share))
    ranks = tuple(replace(r, size=parts) if r.size == split.PARTS else r for r in moved.ranks)
    return replace(moved, ranks=ranks, inputs=moved.inputs[:-1])


def by_rows(partial: Flat, form: Items, before: int, of: int) -> Flat:
    """What `run` made, with its states where those of items of one row lie: its parts behind ``before`` others, of so many in all."""
    ranks = {x.target: x.ranks for x in partial.einsums}
    return replace(partial, places=tuple(_place(partial, form, n, ranks[n], before, of) for n in partial.outs))


def _place(c: Flat, form: Items, name: str, ranks: tuple[str, ...], before: int, of: int) -> Place:
    row = next(r.name for r in c.ranks if r.kind == "query" and r.name not in c.over)
    assert row in ranks, f"{name} is no state of a row, so a kernel of its own completes it"
    _, *over, part = c.over

    def at(r: str) -> Expr:
        if r != row:
            return ex.index(r)
        return call("%", ex.index(r), ex.const(form.stacked)) if form.stacked > 1 else ex.ZERO

    def size(r: str) -> Expr:
        return ex.const(form.stacked) if r == row else ex.size(c.rank(r).size)

    parts = call("+", ex.index(part), ex.const(before)) if before else ex.index(part)
    axes = (call("+", ex.size(form.total), ex.ONE), *map(size, over), ex.const(of), *map(size, ranks))
    return Place(name, axes, (form.row, *map(ex.index, over), parts, *map(at, ranks)))
