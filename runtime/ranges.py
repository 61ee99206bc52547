"""Reads outside a tensor, found before a kernel runs: with the point where it happens, and without visiting every point."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from einfuse.ir import Cascade, Expr, TileMap, call, classify, conjunction, const
from einfuse.ir import expr as ex
from einfuse.ir.definitions import Definitions
from einfuse.ir.errors import TooLargeError
from einfuse.ir.extents import within_axis
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.passes import infer_space
from einfuse.ir.text import show_expr
from einfuse.runtime.binding import evaluate, extent_of
from einfuse.runtime.given import Given

TILE = 64
MOST_READERS = 4  # spaces that are looked at together; with more of them a read is checked at every point
TILES_TRIED = 16  # a tile that may hold an outside read is looked through point by point; that many of them


@dataclass(frozen=True)
class Suspect:
    """An index that is not inside its axis by construction, and the space in which it is read."""

    statement: str
    tensor: str
    axis: int
    index: Expr
    extent: Expr
    space: Expr | None

    @functools.cached_property
    def anywhere(self) -> Expr:
        """Where the index is outside of its axis, in the space or not."""
        below = call("<", self.index, const(0))
        above = call(">=", self.index, self.extent)
        return call("or", below, above)

    @functools.cached_property
    def outside(self) -> Expr:
        both = conjunction(self.space, self.anywhere)
        assert both is not None, "the index is compared"
        return both


def suspects(cascade: Cascade) -> tuple[Suspect, ...]:
    """Every index that has to be looked at for a call."""
    return tuple(dict.fromkeys(_suspects(infer_space.run(cascade))))


def _suspects(cascade: Cascade) -> Iterator[Suspect]:
    tensors = {t.name: t for t in cascade.inputs if not t.param}
    statements = {x.target: x for x in cascade.einsums}
    definitions = Definitions(x for x in statements.values() if x.red is None)
    demand = _demand(cascade)
    for x in statements.values():
        wanted = demand[x.target]
        for part, where in ((x.map, conjunction(x.mask, wanted)), (x.mask, wanted)):
            for e, guard in () if part is None else ex.guarded(part):
                if e.name not in tensors:
                    continue
                space = conjunction(where, *guard)
                for n, (index, axis) in enumerate(zip(e.args, tensors[e.name].axes, strict=True)):
                    try:
                        index = definitions.into(index)
                        known = None if space is None else _known(definitions.into(space), statements)
                    except TooLargeError:
                        continue  # like an index that is computed: kernels clamp it
                    if not within_axis(cascade, index, axis) and not ex.reads(index) & set(statements):
                        yield Suspect(x.target, e.name, n, index, axis, known)


def _known(space: Expr, computed: Collection[str]) -> Expr | None:
    """The parts of a condition that read no computed values: the rest says nothing before a kernel runs."""
    return conjunction(*(p for p in ex.conjuncts(space) if not ex.reads(p) & set(computed)))


def _demand(cascade: Cascade) -> dict[str, Expr | None]:
    """For every statement, the points at which anything reads it (None: all): outside of them it may hold whatever it likes.

    Requires inferred spaces. A condition on other ranks or on computed values, and a read at other coordinates, say nothing.
    """
    statements = {x.target: x for x in cascade.einsums}
    spaces: dict[str, list[Expr | None]] = {n: [None] for n in cascade.outs}
    out: dict[str, Expr | None] = {}
    spaces |= {n: [None] for f in cascade.folds for y in f.body for e in y.expressions for n in ex.reads(e)}
    for x in reversed(cascade.einsums):
        found = dict.fromkeys(spaces.get(x.target, []))
        out[x.target] = None if None in found or len(found) > MOST_READERS else _either([e for e in found if e is not None])
        whole = ex.conjuncts(conjunction(x.mask, out[x.target]))
        for part, parts in ((x.map, whole), (x.mask, ex.conjuncts(out[x.target]))):
            for e in () if part is None else ex.walk(part):
                source = statements.get(e.name) if e.op == "load" else None
                if source is not None:
                    away = e.args != tuple(map(ex.index, source.ranks))
                    known = {*source.ranks, *cascade.over}
                    here = conjunction(*(p for p in parts if ex.indices(p) <= known and not ex.reads(p) & statements.keys()))
                    spaces.setdefault(e.name, []).append(None if away else here)
    return out


def _either(spaces: list[Expr]) -> Expr | None:
    return functools.reduce(functools.partial(call, "or"), spaces) if spaces else None


def inside(cascade: Cascade, suspect: Suspect, given: Given) -> bool:
    """Whether no point at all, live or not, reads outside: whatever the tables hold that say which points are live."""
    found = _classified(cascade, suspect.anywhere, given)
    return found is None or not found[0].kind.any()


def check(cascade: Cascade, suspect: Suspect, given: Given) -> None:
    """Raises ValueError that names the tensor, the index, its value and the point, if a live point reads outside."""
    classified = _classified(cascade, suspect.outside, given)
    if classified is None:
        return
    found, rows, columns = classified
    extents = {r.name: extent_of(cascade, r.name, given.sizes) for r in cascade.ranks}
    used = [r.name for r in cascade.ranks if r.name in ex.indices(suspect.outside)]
    live = np.argwhere(found.kind != 0)
    for at in live[:TILES_TRIED]:
        window = {r: (int(k), int(k) + 1) for r, k in zip(found.ranks, at[:-2], strict=True)}
        for r, k in ((rows, at[-2]), (columns, at[-1])):
            window[r] = (int(k) * TILE, min((int(k) + 1) * TILE, extents[r]))
        _look(cascade, suspect, used, window, given)


def _classified(cascade: Cascade, outside: Expr, given: Given) -> tuple[TileMap, str, str] | None:
    """Where tiles of points may read outside, and the ranks of their rows and columns; None where there is nothing to look at."""
    extents = {r.name: extent_of(cascade, r.name, given.sizes) for r in cascade.ranks}
    if any(n == 0 for n in extents.values()):
        return None
    used = [r.name for r in cascade.ranks if r.name in ex.indices(outside)]
    ambient = {r: extents[r] for r in cascade.over}
    free = [r for r in used if r not in ambient]
    if len(free) > 2:
        return None  # more than a pair of coordinates: kernels clamp such a read
    rows, columns = (free + [r for r in extents if r not in free and r not in ambient])[:2]
    tables = {n: given.tensors[n].detach().cpu() for n in ex.reads(outside) if n in given.tensors}
    arrays = {n: (t.double() if t.is_floating_point() else t).numpy() for n, t in tables.items()}  # numpy has no bfloat16
    sides = (rows, extents[rows], TILE), (columns, extents[columns], TILE)
    return classify(outside, *sides, dict(given.sizes), dict(given.numbers), arrays, ambient), rows, columns


def _look(cascade: Cascade, suspect: Suspect, used: list[str], window: Mapping[str, tuple[int, int]], given: Given) -> None:
    """Raises for the first outside read among the points of a window."""
    values = evaluate_indices(cascade, (suspect.outside, suspect.index), used, given.inputs, given.sizes, window)
    bad = torch.broadcast_to(values[0].bool(), torch.broadcast_shapes(*(v.shape for v in values))).nonzero()
    if len(bad) == 0:
        return
    at = tuple(int(k) for k in bad[0])
    value = int(torch.broadcast_to(values[1], torch.broadcast_shapes(*(v.shape for v in values)))[at])
    where = ", ".join(f"{r} = {window.get(r, (0, 0))[0] + k}" for r, k in zip(used, at, strict=True))
    extent = evaluate(suspect.extent, given.sizes)
    raise ValueError(
        f"{cascade.name}: index {suspect.axis} of {suspect.tensor} is {show_expr(suspect.index)} = {value} at {where}, "
        f"but the axis has {extent} entries"
    )
