"""Each row goes through its own list, in place of a mask that a list of blocks makes (`through`): heads that share the list are one tile.

    over b, h, g                                          over b, h, i
    rank i: query = Nq                                    rank g: query = G                        heads, on which no list and no column depends
    rank j: key = Nk                                      rank j: key = 16 * 64                    so many slots, blocks of 64
    s[i, j] = sum[d] q[b, h, g, i, d] * k[b, h, j, d]     s[g, j] = sum[d] q[b, h, g, i, d] * k[b, h, at(j), d]
              where j <= i and has[b, h, i, j // 64] ->             where (j_lo[b, h, i] <= j // 64 and j // 64 < j_hi[b, h, i] or at(j) <= i)
                                                                          and j // 64 < j_length[b, h, i]
    o[i, e] = ..                                          out o[B, H, G, Nq, E] at [b, h, g, i, e]
                                                          at(j) = listed[b, h, i, j // 64] * 64 + j % 64

Heads that share lists and columns as `h // group` are such a rank once the groups are one (`grouped`): h is group * h_group + h_of.
There are no parts and nothing is put together afterwards: the work is that of the pairs that are listed. Entries are in ascending order,
so that the blocks of which all columns are alive for a row stand together: the loop over them has no mask.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Einsum, Expr, Flat, Place, Rank, Tensor
from einfuse.ir.passes import heads_as_rows
from einfuse.ir.passes.through import Listed, at_lists, at_places, conditions, reach, told
from einfuse.ir.rewrite import fresh, taken


@dataclass(frozen=True, slots=True)
class Own:
    """A cascade whose rows are the former ambient rank ``heads``, over the lists of the former ``rows``.

    ``others`` are the ambient ranks that it has kept. Its lists are, each behind the extents of ``others``, ``listed`` [.., rows, slots], the
    blocks in ascending order, and, [.., rows], ``length``, how many a row has, and ``whole``, two slots: blocks between need no mask.
    ``bounds`` are four of a row's columns, where numbers tell them: none is alive below the first or from the last on, all are between the
    others.
    """

    cascade: Flat
    heads: str
    rows: str
    others: tuple[str, ...]
    listed: str
    length: str
    whole: tuple[str, ...]
    bounds: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Grouped:
    """A cascade that has the heads ``of`` a group as an ambient rank, and the groups as another: the former ``heads`` over ``group``, as
    many as the size ``groups`` says. ``places`` are where its outputs lie."""

    found: Listed
    of: str
    heads: Rank
    group: Expr
    groups: str
    places: tuple[Place, ...]


def shared(found: Listed) -> tuple[str, ...]:
    """The ambient ranks whose points share the lists and what is read of columns: rows of one product. Blocks are of columns."""
    c = found.cascade
    apart = set().union(*map(ex.indices, _of_columns(found)))
    return tuple(r for r in c.over if r not in apart)


def _of_columns(found: Listed) -> list[Expr]:
    """What may not depend on the heads of a tile: which list a row has, what is read of columns, and what no row has."""
    every = [y for x in found.cascade.einsums for y in x.expressions]
    loads = [e for y in every for e in ex.walk(y) if e.op == "load" and found.columns in ex.indices(e)]
    return [
        *found.atom.args[:-1],
        *loads,
        *(y for x in found.cascade.einsums if found.rows not in x.ranks for y in x.expressions),
    ]


def grouped(found: Listed) -> Grouped | None:
    """The cascade with heads that share lists and columns as a rank of their own; None where there are no such groups."""
    c, parts = found.cascade, _of_columns(found)
    quotients = {e for x in parts for e in ex.walk(x) if heads_as_rows.shares(c, e)}
    for quotient in quotients if len(quotients) == 1 else ():
        heads, group = c.rank(quotient.args[0].name), quotient.args[1]
        names = taken(c)
        at, of, groups = (fresh(f"{heads.name}_{n}", names) for n in ("group", "of", "groups"))
        places = {ex.index(heads.name): ex.call("+", ex.call("*", group, ex.index(at)), ex.index(of)), quotient: ex.index(at)}

        def moved(e: Expr, places: Mapping[Expr, Expr] = places) -> Expr:
            return ex.substitute(e, places.get)

        if any(of in ex.indices(moved(x)) for x in parts):
            return None
        sized = heads_as_rows.Sized(heads.size, 0, group, groups)
        size = heads_as_rows.number(group)
        ranks = ((Rank(at, "head", groups), Rank(of, "head", size)) if r.name == heads.name else (r,) for r in c.ranks)
        over = ((at, of) if r == heads.name else (r,) for r in c.over)
        own = {x.target: x.ranks for x in c.einsums}
        made = replace(
            c,
            over=tuple(itertools.chain(*over)),
            ranks=tuple(itertools.chain(*ranks)),
            inputs=tuple(replace(t, axes=tuple(map(sized, t.axes))) for t in c.inputs),
            body=tuple(replace(x, map=moved(x.map), mask=None if x.mask is None else moved(x.mask)) for x in c.einsums),
        )
        outs = (_place(c, n, (*c.over, *own[n])) for n in c.outs)
        laid = tuple(replace(p, axes=tuple(map(sized, p.axes)), index=tuple(map(moved, p.index))) for p in outs)
        return Grouped(replace(found, cascade=made, atom=moved(found.atom)), of, heads, group, groups, laid)
    return None


def run(found: Listed, heads: str, slots: int, short: bool, apart: bool, places: tuple[Place, ...] = ()) -> Own:
    """Requires that ``heads`` is one of `shared`. ``short``: the last block may be. ``apart``: columns that need no mask are told from
    others. ``places`` are those of the outputs, if they are not at the ranks of the cascade."""
    c, columns, rows = found.cascade, found.columns, found.rows
    names = taken(c)
    listed, length = (fresh(f"{columns}_{n}", names) for n in ("listed", "length"))
    others = tuple(r for r in c.over if r != heads)
    here, place = tuple(ex.index(r) for r in (*others, rows)), ex.index(columns)
    slot, within = (place, None) if found.width == 1 else (ex.call(f, place, ex.const(found.width)) for f in ("//", "%"))
    entry = ex.load(listed, *here, slot)
    column = entry if within is None else ex.call("+", ex.call("*", entry, ex.const(found.width)), within)
    beside = conditions(found, columns)
    inside = ex.call("<", slot, ex.load(length, *here))
    end = ex.call("<", column, ex.size(c.rank(columns).size)) if short else None
    bounds = _bounds(found, heads, ex.conjunction(*beside))
    whole = tuple(fresh(f"{columns}_{n}", names) for n in ("lo", "hi")) if bounds and apart else ()
    said: dict[Expr, Expr | None] = {found.atom: ex.conjunction(inside, end)}
    if whole:
        lo, hi = (ex.load(n, *here) for n in whole)
        between = ex.call("and", ex.call("<=", lo, slot), ex.call("<", slot, hi))
        said |= {p: ex.call("or", between, at_places(p, {columns: column})) for p in beside}
        said[found.atom] = ex.conjunction(inside, None if end is None else ex.call("or", between, end))
    axes = tuple(ex.size(c.rank(r).size) for r in (*others, rows))
    tables = [Tensor(n, axes, "int", made=True) for n in (length, *whole)]
    tables.append(Tensor(listed, (*axes, ex.const(slots)), "int", made=True))
    ranks = {
        heads: replace(c.rank(heads), kind="query"),
        rows: replace(c.rank(rows), kind="batch"),
        columns: replace(c.rank(columns), size=slots * found.width, extent=None),
    }
    own = {x.target: x.ranks for x in c.einsums}
    moved = replace(
        c,
        name=f"{c.name}_own",
        over=(*others, rows),
        ranks=tuple(ranks.get(r.name, r) for r in c.ranks),
        inputs=(*(t for t in c.inputs if t.name != found.atom.name), *tables),
        body=tuple(_of_heads(x, heads, rows, own) for x in at_lists(c, {columns: column}, said)),
        places=places or tuple(_place(c, n, (*c.over, *own[n])) for n in c.outs),
    )
    return Own(moved, heads, rows, others, listed, length, whole, bounds)


def _of_heads(x: Einsum, heads: str, rows: str, own: Mapping[str, tuple[str, ...]]) -> Einsum:
    """A statement with heads in place of rows; what it reads of others as well."""

    def read(e: Expr) -> Expr | None:
        if e.op != "load" or rows not in own.get(e.name, ()):
            return None
        return replace(e, args=tuple(ex.index(heads if r == rows else r) for r in own[e.name]))

    mask = None if x.mask is None else ex.substitute(x.mask, read)
    return replace(x, ranks=tuple(heads if r == rows else r for r in x.ranks), map=ex.substitute(x.map, read), mask=mask)


def _place(c: Flat, name: str, ranks: tuple[str, ...]) -> Place:
    return Place(name, tuple(ex.size(c.rank(r).size) for r in ranks), tuple(map(ex.index, ranks)))


def _bounds(found: Listed, heads: str, condition: Expr | None) -> tuple[Expr, ...]:
    """Between which columns any, and all are alive for a row; nothing where no numbers tell."""
    if condition is None:
        none, every = ex.const(0), ex.size(found.cascade.rank(found.columns).size)
        return (none, none, every, every)
    r = reach(found, condition, 1)
    bounds = () if r is None else (r.lo, r.full_lo, r.full_hi, r.hi)
    return bounds if told(found.cascade, bounds) and all(heads not in ex.indices(e) for e in bounds) else ()
