"""Pairs of rows and blocks of columns, given by lists, in place of a mask that a list of blocks makes.

    over b, h                                             over group                               a tile of rows that chose one block
    rank i: query = Nq                                    rank i: query = 64
    rank j: key = Nk                                      rank j: key = 64                         the block
    s[i, j] = sum[d] q[b, h, i, d] * ..           ->      s[i, j] = sum[d] q[b_at[group], h_at[group], i_at[group, i], d] * ..
              where j <= i and has[b, h, i, j // 64]                where j_at[group] * 64 + j <= i_at[group, i]
    m[i] = max[j] s[i, j]                                 m[i] = max[j] s[i, j]                    a part for each pair of a row and a block

    over chunk                                            a chunk of rows puts the parts together that its rows have
    m[i] = max[part] m_part[place[chunk, i, part]] where place[chunk, i, part] >= 0
    o[i, e] = ..                                          out o[B, H, Nq, E] at [b_at[chunk], h_at[chunk], i_at[chunk, i], e]

    over lane, turn                                       or a row brings its states on by one block after the other
    m_next[i] = max(m_held[.., i_at[lane, turn, i]], max[j] s[i, j])
    out m_next at [.., i_at[lane, turn, i]]               which is where m_held is: the points of `turn` run in order

What is computed does not change, but in its order. The work is that of the pairs that are listed, in whole tiles: rows that chose a block are
gathered, so that it is one product of matrices for each tile. Sums over the rows of a block, gradients of keys and values, are `inverse`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Cascade, Einsum, Expr, Flat, Fold, Place, Range, Rank, State, Tensor
from einfuse.ir.passes import mask_ranges, split, walk
from einfuse.ir.rewrite import fresh, statements, taken


@dataclass(frozen=True, slots=True)
class Listed:
    """A cascade all of whose sums over ``columns`` are under ``atom``: a table of truth values, read last at a block of the blocked rank.

    ``blocked`` is the rank that the blocks of ``width`` are of: the columns, or the rows of the cascade itself.
    """

    cascade: Flat
    rows: str
    columns: str
    atom: Expr
    blocked: str
    width: int


def find(cascade: Cascade, table: str, numbers: Mapping[str, int]) -> Listed | None:
    """How a cascade reads a table; None where the lists of the table cannot drive its loops."""
    pair = walk.pair(cascade)
    atoms = [] if pair is None else [e for e in pair.conditions if e.op == "load" and e.name == table]
    if pair is None or len(atoms) != 1:
        return None
    (atom,) = atoms
    *prefix, element = atom.args
    ranks = ex.indices(element) & {pair.rows, pair.columns}
    if len(ranks) != 1:
        return None
    (blocked,) = ranks
    width = _width(element, blocked, numbers)
    if width is None or any(blocked in ex.indices(e) for e in prefix) or reads(pair.cascade, table) != {atom}:
        return None
    return Listed(pair.cascade, pair.rows, pair.columns, atom, blocked, width)


def _width(element: Expr, rank: str, numbers: Mapping[str, int]) -> int | None:
    """The number of coordinates that an element stands for: x // width, or x itself."""
    if element == ex.index(rank):
        return 1
    if element.op != "//" or element.args[0] != ex.index(rank):
        return None
    by = element.args[1]
    if by.op == "const":
        return int(by.value)  # type: ignore[arg-type]  # a divisor is an int
    return numbers.get(by.name) if by.op in ("load", "size") and not by.args else None


def reads(c: Cascade, table: str) -> set[Expr]:
    """All reads of a table."""
    every = (e for x in statements(c) for y in x.expressions for e in ex.walk(y))
    return {e for e in every if e.op == "load" and e.name == table}


@dataclass(frozen=True, slots=True)
class Parts:
    """A cascade as parts of pairs, and their merge. ``held`` says what ``merged`` calls the outputs of ``partial``.

    ``at`` are the lists of ``partial`` by rank: the coordinate of each ambient rank [groups] and of the rows [groups, tile], and the block
    [groups]. ``of`` are those of ``merged``: [chunks] and [chunks, rows]. ``place`` [chunks, rows, slots] is where the parts of a row are
    among all ``pairs``, -1 where it has none. ``sizes`` as in `split.Split`.
    """

    partial: Flat
    merged: Flat
    held: Mapping[str, str]
    at: Mapping[str, str]
    of: Mapping[str, str]
    place: str
    groups: str
    chunks: str
    pairs: str
    sizes: dict[str, str]


@dataclass(frozen=True, slots=True)
class Turns:
    """A cascade that brings the states of rows on by one block of columns after the other, and what finishes them.

    ``at`` are its lists by rank: the coordinate of each ambient rank [lanes], the rows [lanes, turns, tile], and the block [lanes, turns].
    ``held`` says what a state is called as an input, [.., room, ..]: what the cascade gives for it (``gives``) is written in its place. A row
    that is none has a number of its own from the number of rows on. ``sizes`` as in `split.Split`.
    """

    cascade: Flat
    finalise: Flat
    held: Mapping[str, str]
    gives: Mapping[str, str]
    start: Mapping[str, float]
    at: Mapping[str, str]
    lanes: str
    turns: str
    room: str
    sizes: dict[str, str]


def parts(found: Listed, tile: int, rows: int, slots: int, short: bool) -> Parts:
    """Groups of ``tile`` rows, chunks of ``rows``; ``short``: the last block may be. Requires that the blocks are of columns.

    Raises SpecError where the sums of a row have no merge.
    """
    c = found.cascade
    cut = split.run(c)
    names = taken(c) | taken(cut.partial) | taken(cut.merged)
    group, groups, chunk, chunks, pairs = (fresh(n, names) for n in ("group", "Groups", "chunk", "Chunks", "Pairs"))
    at = {r: fresh(f"{r}_at", names) for r in (*c.over, found.rows, found.columns)}
    of = {r: fresh(f"{r}_of", names) for r in (*c.over, found.rows)}
    place = fresh("place", names)
    return Parts(
        _partial(found, cut, group, groups, at, tile, short),
        _merged(found, cut, chunk, chunks, of, place, pairs, rows, slots),
        cut.held,
        at,
        of,
        place,
        groups,
        chunks,
        pairs,
        cut.sizes,
    )


def _partial(found: Listed, cut: split.Split, group: str, groups: str, at: Mapping[str, str], tile: int, short: bool) -> Flat:
    c, partial = found.cascade, cut.partial
    here, bounds = ex.index(group), partial.inputs[-1].name
    column = of_block(ex.load(at[found.columns], here), found.columns, found.width)
    lists = {r: ex.load(at[r], here) for r in c.over} | {found.columns: column}
    lists[found.rows] = ex.load(at[found.rows], here, ex.index(found.rows))
    kept = tuple(t for t in partial.inputs if t.name not in (bounds, found.atom.name))
    tables = [Tensor(at[r], (ex.size(groups),), "int", made=True) for r in (*c.over, found.columns)]
    tables.append(Tensor(at[found.rows], (ex.size(groups), ex.const(tile)), "int", made=True))
    inside = ex.call("<", column, ex.size(c.rank(found.columns).size)) if short else None
    body = at_lists(partial, lists, {found.atom: inside}, lambda e: bounds in ex.reads(e))
    ranks = ranks_of(partial, Rank(group, "batch", groups), {found.rows: tile, found.columns: found.width})
    return replace(partial, name=f"{c.name}_listed", over=(group,), ranks=ranks, inputs=(*kept, *tables), body=body, places=())


def _merged(
    found: Listed,
    cut: split.Split,
    chunk: str,
    chunks: str,
    of: Mapping[str, str],
    place: str,
    pairs: str,
    rows: int,
    slots: int,
) -> Flat:
    c, merged = found.cascade, cut.merged
    (part,) = {r.name for r in merged.ranks} - {r.name for r in c.ranks}
    here, row = ex.index(chunk), ex.load(of[found.rows], ex.index(chunk), ex.index(found.rows))
    lists = {r: ex.load(of[r], here) for r in c.over} | {found.rows: row}
    at = ex.load(place, here, ex.index(found.rows), ex.index(part))
    held, ambient = {n: y for y, n in cut.held.items()}, len(c.over) + 1
    ranks = of_rows(c, statements(cut.partial), cut.states, found.rows)

    def flat(state: str, axes: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """What is left of the axes of a part where its pair has been named."""
        own = ambient + ranks[held[state]].index(found.rows)
        return axes[ambient:own] + axes[own + 1 :]

    def stored(e: Expr) -> Expr | None:
        return replace(e, args=(at, *flat(e.name, e.args))) if e.op == "load" and e.name in held else None

    known = ex.call(">=", at, ex.ZERO)
    body = []
    for x in at_lists(merged, lists):
        mask = None if x.mask is None else ex.substitute(x.mask, stored)
        mask = ex.conjunction(known, mask) if part in x.over else mask
        body.append(replace(x, map=ex.substitute(x.map, stored), mask=mask))
    own = {x.target: (*c.over, *x.ranks) for x in body}
    tables = [Tensor(of[r], (ex.size(chunks),), "int", made=True) for r in c.over]
    tables.append(Tensor(of[found.rows], (ex.size(chunks), ex.const(rows)), "int", made=True))
    tables.append(Tensor(place, (ex.size(chunks), ex.const(rows), ex.const(slots)), "int", made=True))
    parts_of = (replace(t, axes=(ex.size(pairs), *flat(t.name, t.axes))) if t.name in held else t for t in merged.inputs)
    return replace(
        merged,
        over=(chunk,),
        ranks=ranks_of(merged, Rank(chunk, "batch", chunks), {found.rows: rows, part: slots}),
        inputs=(*parts_of, *tables),
        body=tuple(body),
        places=tuple(_place(c, n, own[n], lists) for n in merged.outs),
    )


def turns(found: Listed, tile: int, short: bool) -> Turns:
    """Turns of ``tile`` rows; ``short``: the last block may be. Requires that the blocks are of columns.

    Raises SpecError where the sums of a row have no merge, or some state is not of a row.
    """
    c = found.cascade
    cut = split.run(c)
    names = taken(c) | taken(cut.partial) | taken(cut.merge)
    lane, lanes, turn, count, room = (fresh(n, names) for n in ("lane", "Lanes", "turn", "Turns", "Room"))
    at = {r: fresh(f"{r}_at", names) for r in (*c.over, found.rows, found.columns)}
    here = (ex.index(lane), ex.index(turn))
    row = ex.load(at[found.rows], *here, ex.index(found.rows))
    column = of_block(ex.load(at[found.columns], *here), found.columns, found.width)
    lists = {r: ex.load(at[r], ex.index(lane)) for r in c.over} | {found.rows: row, found.columns: column}
    size, bounds = ex.size(c.rank(found.rows).size), cut.partial.inputs[-1].name
    inside = ex.conjunction(
        ex.call("<", row, size), ex.call("<", column, ex.size(c.rank(found.columns).size)) if short else None
    )
    body = at_lists(cut.partial, lists, {found.atom: inside}, lambda e: bounds in ex.reads(e))
    ranks = of_rows(c, body, cut.states, found.rows)
    gives = {y: fresh(f"{y}_next", names) for y in cut.states}
    joined = _joined(cut, lists, gives, names)
    tables = [Tensor(at[r], (ex.size(lanes),), "int", made=True) for r in c.over]
    tables += [Tensor(at[found.columns], (ex.size(lanes), ex.size(count)), "int", made=True)]
    tables += [Tensor(at[found.rows], (ex.size(lanes), ex.size(count), ex.const(tile)), "int", made=True)]
    held = {y: Tensor(n, roomy(cut, y, ranks[y].index(found.rows), room)) for y, n in cut.held.items()}
    kept = tuple(t for t in cut.partial.inputs if t.name not in (bounds, found.atom.name))
    moved = replace(
        cut.partial,
        name=f"{c.name}_listed",
        over=(lane, turn),
        ranks=(
            Rank(lane, "batch", lanes),
            *ranks_of(cut.partial, Rank(turn, "turn", count), {found.rows: tile, found.columns: found.width}),
        ),
        inputs=(*kept, *held.values(), *tables),
        body=(*body, *joined),
        outs=tuple(gives.values()),
        places=tuple(
            Place(gives[y], held[y].axes, tuple(lists.get(r, ex.index(r)) for r in (*c.over, *ranks[y]))) for y in cut.states
        ),
    )
    start = {x.target: x.reducer.identity for x in body if x.target in cut.states}
    return Turns(moved, cut.finalise, cut.held, gives, start, at, lanes, count, room, cut.sizes)


def of_rows(c: Flat, body: Iterable[Einsum | State], states: tuple[str, ...], rows: str) -> dict[str, tuple[str, ...]]:
    """The ranks of every state. Raises SpecError where a row does not have it to itself."""
    ranks = {x.target: x.ranks for x in body if x.target in states}
    if any(rows not in r for r in ranks.values()):
        raise SpecError(f"{c.name} has a state that no row has", c.loc)
    return ranks


def roomy(cut: split.Split, state: str, row: int, room: str) -> tuple[Expr, ...]:
    """The axes of a state with room for more than all rows, whose rank is its own one of number ``row``."""
    axes = next(t.axes for t in cut.finalise.inputs if t.name == cut.held[state])
    at = len(cut.merge.over) + row
    return (*axes[:at], ex.size(room), *axes[at + 1 :])


def _joined(cut: split.Split, lists: Mapping[str, Expr], gives: Mapping[str, str], names: set[str]) -> list[Einsum]:
    """The merge of what a row has had and of what a block brings, as statements."""
    merge, held = cut.merge, {n: y for y, n in cut.held.items()}
    told = {n: ex.size(size) for size, n in cut.sizes.items()}
    new = {x.target: gives.get(x.target) or fresh(x.target, names) for x in merge.einsums}
    ambient = len(merge.over)

    def one(e: Expr, old: bool) -> Expr:
        def here(x: Expr) -> Expr | None:
            if x.op == "load" and x.name in held:
                own = (*x.args[:ambient], *x.args[ambient + 1 :])
                return ex.load(x.name, *(lists.get(a.name, a) for a in own)) if old else ex.load(held[x.name], *own[ambient:])
            if x.op == "load" and x.name in new:
                return replace(x, value=new[x.name])
            if x.op == "load" and x.name in told:
                return told[x.name]
            return lists.get(x.name) if x.op == "index" else None

        return ex.substitute(e, here)

    def term(x: Einsum, old: bool) -> Expr:
        value = one(x.map, old)
        return value if x.mask is None else ex.call("select", one(x.mask, old), value, ex.const(x.reducer.identity))

    out = []
    for x in merge.body:
        value = ex.call(x.reducer.combine, term(x, True), term(x, False)) if x.over else one(x.map, False)
        out.append(Einsum(new[x.target], x.ranks, None, (), value))
    return out


def of_block(block: Expr, rank: str, width: int) -> Expr:
    """A coordinate of a block."""
    return block if width == 1 else ex.call("+", ex.call("*", block, ex.const(width)), ex.index(rank))


def ranks_of(c: Flat, group: Rank, sized: Mapping[str, int]) -> tuple[Rank, ...]:
    """The ranks of a cascade over groups: its own ambient ranks are no longer any."""
    left = (r for r in c.ranks if r.name not in c.over)
    return (group, *(replace(r, size=sized[r.name], extent=None) if r.name in sized else r for r in left))


def conditions(found: Listed, rank: str) -> tuple[Expr, ...]:
    """The conditions beside the table that are about a rank."""
    every = (p for x in found.cascade.body for p in ex.conjuncts(x.mask) if p != found.atom and rank in ex.indices(p))
    return tuple(dict.fromkeys(every))


def reach(found: Listed, condition: Expr, width: int) -> Range | None:
    """Between which columns any, and all are alive for ``width`` rows, by the index of these; None where there is no one range."""
    c, rows = found.cascade, found.rows
    ranges = mask_ranges.closed_form(replace(c, tile=((rows, width),)), Fold(found.columns, (), condition, step=1))
    if ranges is None or len(ranges) != 1:
        return None
    lo = ex.call("*", ex.index(rows), ex.const(width))
    hi = ex.call("min", ex.call("+", lo, ex.const(width)), ex.size(c.rank(rows).size))
    ends = {f"{rows}.lo": lo, f"{rows}.hi": hi}
    lo, hi, full_lo, full_hi = (
        ex.substitute(e, lambda x: ends.get(x.name) if x.op == "size" else None)
        for e in (ranges[0].lo, ranges[0].hi, ranges[0].full_lo, ranges[0].full_hi)
    )
    return Range(lo, hi, full_lo, full_hi)


def told(c: Flat, bounds: Iterable[Expr]) -> bool:
    """Whether host numbers, sizes and coordinates tell bounds."""
    return set().union(*map(ex.reads, bounds)) <= {t.name for t in c.inputs if t.param}


def at_places(e: Expr, lists: Mapping[str, Expr]) -> Expr:
    """An expression that reads no statement, at the places of lists."""
    return ex.substitute(e, lambda x: lists.get(x.name) if x.op == "index" else None)


def at_lists(
    c: Flat,
    lists: Mapping[str, Expr],
    said: Mapping[Expr, Expr | None] = MappingProxyType({}),
    drops: Callable[[Expr], bool] = lambda e: False,
) -> tuple[Einsum, ...]:
    """The statements at the places of lists. What a condition of ``said`` stands for takes its place; those that ``drops`` are left out."""
    own = {x.target for x in c.einsums}

    def one(x: Expr) -> Expr | None:
        if x.op == "load" and x.name in own:
            return x  # at its own coordinates
        return lists.get(x.name) if x.op == "index" else None

    def mask(e: Expr | None) -> Expr | None:
        kept = (said[p] if p in said else ex.substitute(p, one) for p in ex.conjuncts(e) if not drops(p))
        return ex.conjunction(*kept)

    einsums = c.einsums
    return tuple(replace(x, map=ex.substitute(x.map, one), mask=mask(x.mask)) for x in einsums)


def _place(c: Flat, name: str, ranks: tuple[str, ...], lists: Mapping[str, Expr]) -> Place:
    axes = tuple(ex.size(c.rank(r).size) for r in ranks)
    return Place(name, axes, tuple(lists.get(r, ex.index(r)) for r in ranks))
