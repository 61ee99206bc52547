"""Rows of an ambient rank that lists name (routed heads), in place of a table of truth values that leaves the others empty.

    over b, h                                     over lane, group             a tile of rows that chose one head
    rank i: query = Nq                            rank i: query = 128
    s[i, j] = sum[d] q[b, h, i, d] * ..     ->    s[i, j] = sum[d] q[b_at[lane], h_at[lane, group], i_at[lane, group, i], d] * ..
              where has[b, i, h]                            where i_at[lane, group, i] < Nq
    m[i] = max[j] s[i, j]                         m[i] = max[j] s[i, j]
                                                  out m[B, H, Room] at [.., i_at[lane, group, i]]
    o[i, e] = ..                                  finalise: o, of the states of all rows

The work is that of the rows that are listed. A row that is none has the states of no points at all, which the finish makes outputs of.
Sums over the rows that chose a head (gradients of keys and values), or over keys that did, need no states:

    over b, h                                     over b, h
    rank j: key = Nk                              rank j: key = Nk             all of them
    rank i: query = Nq                            rank i: query = Nq           those that chose the head, one after the other
    d_v[j, e] = sum[i] ..                   ->    d_v[j, e] = sum[i] .. d_o[b, h, listed[b, start[b, h] + i], e]
                where has[b, i, h]                            where i < count[b, h]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, Expr, Flat, Place, Rank, Tensor
from einfuse.ir.passes import split, through, walk
from einfuse.ir.rewrite import fresh, taken


@dataclass(frozen=True, slots=True)
class Routed:
    """A cascade all of whose sums over ``columns`` are under ``atom``: a table read last at the ambient rank ``chosen``, before it at the
    ``lister``, which is the rows or the columns."""

    cascade: Flat
    rows: str
    columns: str
    atom: Expr
    chosen: str
    lister: str

    @property
    def others(self) -> tuple[str, ...]:
        """The ambient ranks beside the chosen one."""
        return tuple(r for r in self.cascade.over if r != self.chosen)


def find(cascade: Cascade, table: str) -> Routed | None:
    """How a cascade reads a table; None where the lists of the table route neither its rows nor its columns."""
    pair = walk.pair(cascade)
    atoms = [] if pair is None else [e for e in pair.conditions if e.op == "load" and e.name == table]
    if pair is None or len(atoms) != 1 or through.reads(pair.cascade, table) != {atoms[0]}:
        return None
    *prefix, element = atoms[0].args
    found = [r for r in cascade.over if element == ex.index(r)]
    known = set().union(*map(ex.indices, prefix))
    listers = known & {pair.rows, pair.columns}
    if not found or found[0] in known or len(listers) != 1:
        return None
    (lister,) = listers
    return Routed(pair.cascade, pair.rows, pair.columns, atoms[0], found[0], lister) if ex.index(lister) in prefix else None


@dataclass(frozen=True, slots=True)
class Groups:
    """The states of listed rows, and what finishes those of all.

    ``held`` says what a state is called as an input of ``finalise``, ``start`` what rows that are not listed have. ``at`` are the lists by
    rank: [lanes], [lanes, groups] of the chosen one, and [lanes, groups, tile] of the rows. ``sizes`` as in `split.Split`.
    """

    cascade: Flat
    finalise: Flat
    held: Mapping[str, str]
    start: Mapping[str, float]
    at: Mapping[str, str]
    lanes: str
    groups: str
    room: str
    sizes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Gathered:
    """A cascade over the columns that chose a point. ``listed`` [.., pairs] has them one point after the other, ``first`` and ``count``
    [.., chosen] say which a point has, all after the other ambient ranks."""

    cascade: Flat
    listed: str
    first: str
    count: str
    pairs: str


def gathered(found: Routed) -> Gathered:
    """Requires that the columns are the lister."""
    c = found.cascade
    names = taken(c)
    listed, first, count = (fresh(f"{found.columns}_{n}", names) for n in ("listed", "start", "length"))
    pairs, place = fresh("Pairs", names), ex.index(found.columns)
    others = tuple(map(ex.index, found.others))
    here = (*others, ex.index(found.chosen))
    lists = {found.columns: ex.load(listed, *others, ex.call("+", ex.load(first, *here), place))}
    outer = tuple(ex.size(c.rank(r).size) for r in found.others)
    points = (*outer, ex.size(c.rank(found.chosen).size))
    tables = [Tensor(n, points, "int", made=True) for n in (first, count)]
    tables.append(Tensor(listed, (*outer, ex.size(pairs)), "int", made=True))
    moved = replace(
        c,
        name=f"{c.name}_gathered",
        inputs=(*(t for t in c.inputs if t.name != found.atom.name), *tables),
        body=through.at_lists(c, lists, {found.atom: ex.call("<", place, ex.load(count, *here))}),
    )
    return Gathered(moved, listed, first, count, pairs)


def run(found: Routed, tile: int) -> Groups:
    """Groups of ``tile`` rows, which are the lister. Raises SpecError where the sums of a row have no states that a row alone has."""
    c = found.cascade
    cut = split.run(c)
    names = taken(c) | taken(cut.partial) | taken(cut.finalise)
    lane, lanes, group, groups, room = (fresh(n, names) for n in ("lane", "Lanes", "group", "Groups", "Room"))
    at = {r: fresh(f"{r}_at", names) for r in (*c.over, found.rows)}
    here = (ex.index(lane), ex.index(group))
    lists = {r: ex.load(at[r], ex.index(lane)) for r in found.others} | {found.chosen: ex.load(at[found.chosen], *here)}
    lists[found.rows] = ex.load(at[found.rows], *here, ex.index(found.rows))
    size, bounds = ex.size(c.rank(found.rows).size), cut.partial.inputs[-1].name
    said = {found.atom: ex.call("<", lists[found.rows], size)}
    body = through.at_lists(cut.partial, lists, said, lambda e: bounds in ex.reads(e))
    states = through.of_rows(c, body, cut.states, found.rows)
    axes = {y: through.roomy(cut, y, ranks.index(found.rows), room) for y, ranks in states.items()}
    tables = [Tensor(at[r], (ex.size(lanes),), "int", made=True) for r in found.others]
    tables += [Tensor(at[found.chosen], (ex.size(lanes), ex.size(groups)), "int", made=True)]
    tables += [Tensor(at[found.rows], (ex.size(lanes), ex.size(groups), ex.const(tile)), "int", made=True)]
    moved = replace(
        cut.partial,
        name=f"{c.name}_routed",
        over=(lane, group),
        ranks=(Rank(lane, "batch", lanes), *through.ranks_of(cut.partial, Rank(group, "batch", groups), {found.rows: tile})),
        inputs=(*(t for t in cut.partial.inputs if t.name not in (bounds, found.atom.name)), *tables),
        body=body,
        places=tuple(Place(y, axes[y], tuple(lists.get(r, ex.index(r)) for r in (*c.over, *states[y]))) for y in states),
    )
    start = {x.target: x.reducer.identity for x in body if x.target in states}
    return Groups(moved, cut.finalise, cut.held, start, at, lanes, groups, room, cut.sizes)
