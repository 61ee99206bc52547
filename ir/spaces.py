"""The space of a statement: the points where it exists, by its own condition and those of what it reads.

A point that does not exist for a statement exists for none of its readers. A reduction over features ends the conditions that
mention them, and the others go on to its readers. A reduction over queries or keys ends all: it has a value in every row, that of
nothing where no point of the row exists, whether the condition that says so mentions the reduced rank or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import AnyCascade, Cascade, Einsum, Expr
from einfuse.ir.rewrite import map_einsums

Spaces = dict[str, tuple[tuple[str, ...], Expr]]
"""The statements with a condition that their readers inherit: their ranks, and the condition over these."""


def inferred(cascade: AnyCascade) -> AnyCascade:
    """The cascade with its whole space as the mask of every statement. Idempotent. The bodies of folds share the fold's own space."""
    spaces: Spaces = {}

    def whole(x: Einsum) -> Einsum:
        mask = ex.conjunction(*ex.conjuncts(x.mask), *conditions(x.map, spaces))
        x = x if mask == x.mask else replace(x, mask=mask)
        spaces.update(given_on(cascade, x))
        return x

    return map_einsums(cascade, whole)


def exists(x: Einsum) -> Expr:
    """Does a slot of a list exist? Coordinates are not negative, and what fills a slot without a point is."""
    return ex.call(">=", ex.at(x.target, x.ranks), ex.ZERO)


def conditions(e: Expr, spaces: Mapping[str, tuple[tuple[str, ...], Expr]]) -> Iterator[Expr]:
    """The conditions that the reads of an expression bring with them, in the coordinates of the reader."""
    for read in ex.walk(e):
        if read.op == "load" and read.name in spaces:
            ranks, space = spaces[read.name]
            yield from ex.conjuncts(ex.rename(space, dict(zip(ranks, read.args, strict=True))))


def given_on(cascade: Cascade, x: Einsum) -> Spaces:
    """What the readers of a statement inherit from it: one entry, or none."""
    if x.reducer.chooses:
        return {x.target: (x.ranks, exists(x))}
    rest = ex.conjunction(*(p for p in ex.conjuncts(x.mask) if not ex.indices(p) & set(x.over)))
    if rest is None or any(cascade.rank(r).is_sequence for r in x.over):
        return {}
    return {x.target: (x.ranks, rest)}
