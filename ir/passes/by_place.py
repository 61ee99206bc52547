"""Gradients of tables that pairs read, added up row by row in the kernels that make them, and not pair by pair behind these.

    rows     d_s[i, j]                           d table[h, bucket(j - i)] += d_s[i, j]        all pairs in memory

      ->     d_table[i, entry] = sum[j] select(entry == bucket(j - i), d_s[i, j], 0)           d table[h, entry] += d_table[i, entry]

A kernel adds each number at its place in the row that it holds (`codegen.cpu.places`), so the sum of a row has one order whatever the
threads. Rows are those of the read where it has one; the kernel of the columns takes what is read at a row of its own. What is made grows
with the rows times the entries, as in `look_up`. For back ends whose kernels can add at computed places without a race.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Einsum, Flat, Rank, Tensor
from einfuse.ir.passes.backward import Backward, Gradient
from einfuse.ir.passes.canonicalise import fold_ranks
from einfuse.ir.passes.look_up import MOST_ENTRIES
from einfuse.ir.rewrite import fresh, prune, taken, with_used_ranks

_Step = tuple[Flat, tuple[Gradient, ...]]


def run(backward: Backward) -> Backward:
    """The backward with such sums in place of values of pairs; itself where there are none, and that of a scan."""
    before = [(c, parts) for c, parts in backward.cascades if isinstance(c, Flat) and not c.places]
    if len(before) < len(backward.cascades):
        return backward
    steps: list[_Step] = [*before]
    names = {n for c, _ in steps for n in taken(c)}
    tables = {t.name: t for c, _ in steps for t in c.inputs}
    for n, (c, parts) in enumerate(before):
        for part in parts:
            read = _read(c, part, tables)
            at = None if read is None else _owner([c for c, _ in steps], n, part, read)
            if read is not None and at is not None:
                steps[n] = (steps[n][0], tuple(p for p in steps[n][1] if p is not part))
                steps[at] = _added(steps[at], part, read, names)
    if all(now is then for now, then in zip(steps, before, strict=True)):
        return backward
    kept = (_pruned(step, then) for step, then in zip(steps, before, strict=True))
    return replace(backward, cascades=tuple((c, parts) for c, parts in kept if c.outs))


@dataclass(frozen=True, slots=True)
class _Read:
    """Where pairs read a table: the ``axis`` of ``entries`` that they choose from by both positions, and the row of the read, if it has one."""

    axis: int
    entries: int
    row: str | None


def _read(c: Flat, part: Gradient, tables: Mapping[str, Tensor]) -> _Read | None:
    """How a part that has a value for every pair reads its input; None for one that is read otherwise."""
    pair = {r.name for r in c.ranks if r.is_sequence and r.name in part.ranks} - set(c.over)
    table = tables.get(part.input)
    computed = [n for n, e in enumerate(part.index) if len(ex.indices(e) & pair) > 1]
    if len(pair) != 2 or table is None or len(computed) != 1:
        return None
    ((axis,), size) = computed, table.axes[computed[0]]
    rows = [e.name for n, e in enumerate(part.index) if n != axis and e.op == "index" and e.name in pair]
    inner = set().union(*(ex.indices(e) for n, e in enumerate(part.index) if n != axis and e.op != "index"))
    if inner & pair or len(rows) > 1 or size.op != "const" or not 0 < int(size.value or 0) <= MOST_ENTRIES:
        return None
    return _Read(axis, int(size.value or 0), rows[0] if rows else None)


def _owner(cascades: list[Flat], at: int, part: Gradient, read: _Read) -> int | None:
    """Which of the cascades makes the pairs of a part row by row: its own one, or another."""
    own = next(x for x in cascades[at].body if x.target == part.statement)
    pair = {r for r in own.ranks if cascades[at].rank(r).is_sequence}
    for n in (at, *(k for k in range(len(cascades)) if k != at and part.times is None)):
        rows = pair - set(fold_ranks(cascades[n]))
        plain = (
            {*own.ranks} == pair
            and own.red is None
            and own in cascades[n].body
            and ex.reads(part.index[read.axis]) <= {t.name for t in cascades[n].inputs}
        )
        if plain and (read.row in rows if read.row else rows):
            return n
    return None


def _added(step: _Step, part: Gradient, read: _Read, names: set[str]) -> _Step:
    """The step with the sums of a part's rows in its place."""
    c, parts = step
    own = next(x for x in c.body if x.target == part.statement)
    row = read.row or next(r for r in own.ranks if r not in fold_ranks(c))
    entry = Rank(fresh("entry", names), "feature", read.entries)
    here = ex.call("==", ex.index(entry.name), part.index[read.axis])
    chosen = ex.call("select", here, ex.at(own.target, own.ranks), ex.const(0.0))
    columns = tuple(r for r in own.ranks if r != row)
    new = Einsum(fresh(f"{own.target}_placed", names), (row, entry.name), "sum", columns, chosen, own.mask)
    index = tuple(ex.index(entry.name) if n == read.axis else e for n, e in enumerate(part.index))
    moved = replace(part, index=index, statement=new.target, ranks=(*c.over, *new.ranks))
    return replace(c, ranks=(*c.ranks, entry), body=(*c.body, new), outs=(*c.outs, new.target)), (*parts, moved)


def _pruned(step: _Step, before: _Step) -> _Step:
    """The step without what only parts that were there before gave out."""
    (c, parts), gone = step, {n for p in before[1] for n in p.statements} - {n for p in step[1] for n in p.statements}
    return with_used_ranks(prune(replace(c, outs=tuple(n for n in c.outs if n not in gone)))), parts
