"""Blocks of a cascade's own rows, each with the columns that list it, in place of a mask that a list of blocks makes (`through`).

    over b, h                                             over group                               a block of columns
    rank j: key = Nk                                      rank j: key = 64
    rank i: query = Nq                                    rank i: query = Nq                       the rows that chose it, one after the other
    d_v[j, e] = sum[i] ..                         ->      d_v[j, e] = sum[i] .. d_o[.., i_listed[i_start[group] + i], e]
              where j <= i and has[.., i, j // 64]                  where (i_whole[group] <= i and i < i_end[group] or
                                                                           j_at[group] * 64 + j <= i_listed[..]) and i < i_length[group]

Sums over the rows of a block (gradients of keys and values) need no parts. What is listed is in ascending order, so that those of which all
of a block is alive stand together: loops have no mask there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Expr, Flat, Rank, Tensor
from einfuse.ir.passes.through import Listed, at_lists, at_places, conditions, of_block, ranks_of, reach, told
from einfuse.ir.rewrite import fresh, taken


@dataclass(frozen=True, slots=True)
class Blocks:
    """A cascade over blocks of its own rows, each with the columns that are listed for it, in ascending order. Its outputs are
    [groups, width, ..].

    ``at`` are its lists: the coordinate of each ambient rank and the block of the rows [groups]; ``first`` and ``count`` [groups] say
    which of the ``columns`` [pairs] a group has. ``whole`` are two lists [groups], with what they count in the cascade that was given, at the
    index of a block in place of that of a row: the listed columns below it. What is listed between needs no mask.
    """

    cascade: Flat
    at: Mapping[str, str]
    columns: str
    first: str
    count: str
    whole: Mapping[str, Expr]
    groups: str
    pairs: str


def run(found: Listed, short: bool, apart: bool) -> Blocks:
    """Requires that the blocks are of the cascade's own rows. ``short``: the last block may be. ``apart``: the columns that need no mask are
    told from others."""
    c = found.cascade
    names = taken(c)
    group, groups, pairs = (fresh(n, names) for n in ("group", "Groups", "Pairs"))
    at = {r: fresh(f"{r}_at", names) for r in (*c.over, found.rows)}
    columns, first, count = (fresh(f"{found.columns}_{n}", names) for n in ("listed", "start", "length"))
    here, place = ex.index(group), ex.index(found.columns)
    row = of_block(ex.load(at[found.rows], here), found.rows, found.width)
    lists = {r: ex.load(at[r], here) for r in c.over} | {found.rows: row}
    lists[found.columns] = ex.load(columns, ex.call("+", ex.load(first, here), place))
    inside = ex.conjunction(
        ex.call("<", place, ex.load(count, here)), ex.call("<", row, ex.size(c.rank(found.rows).size)) if short else None
    )
    beside = conditions(found, found.columns)
    bounds = _whole(found, ex.conjunction(*beside)) if apart else ()
    whole = {fresh(f"{found.columns}_{n}", names): e for n, e in zip(("whole", "end"), bounds, strict=False)}
    said: dict[Expr, Expr | None] = {found.atom: inside}
    if whole:
        lo, hi = (ex.load(n, here) for n in whole)
        between = ex.call("and", ex.call("<=", lo, place), ex.call("<", place, hi))
        said |= {p: ex.call("or", between, at_places(p, lists)) for p in beside}
    tables = [Tensor(n, (ex.size(groups),), "int", made=True) for n in (*at.values(), first, count, *whole)]
    tables.append(Tensor(columns, (ex.size(pairs),), "int", made=True))
    moved = replace(
        c,
        name=f"{c.name}_listed",
        over=(group,),
        ranks=ranks_of(c, Rank(group, "batch", groups), {found.rows: found.width}),
        inputs=(*(t for t in c.inputs if t.name != found.atom.name), *tables),
        body=at_lists(c, lists, said),
        places=(),  # rows beyond the last one have nowhere to go
    )
    return Blocks(moved, at, columns, first, count, whole, groups, pairs)


def _whole(found: Listed, condition: Expr | None) -> tuple[Expr, ...]:
    """From where on and up to where columns are alive for a whole block of rows, by the index of the block; nothing where no numbers tell."""
    found_range = None if condition is None else reach(found, condition, found.width)
    bounds = () if found_range is None else (found_range.full_lo, found_range.full_hi)
    return bounds if told(found.cascade, bounds) else ()
