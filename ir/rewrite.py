"""Helpers for passes: map a function over the expressions or statements of a cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import overload

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import AnyCascade, Blocked, Cascade, DType, Einsum, Expr, Flat, Fold, Range, State, Statement, Tensor


def map_expressions(c: AnyCascade, fn: Callable[[Expr], Expr]) -> AnyCascade:
    """Every map, mask, carry and range of the cascade through ``fn``."""

    def optional(e: Expr | None) -> Expr | None:
        return None if e is None else fn(e)

    def einsum(x: Einsum) -> Einsum:
        return replace(x, map=fn(x.map), mask=optional(x.mask))

    def state(x: State) -> State:
        return replace(x, map=fn(x.map), carry=optional(x.carry), init=optional(x.init))

    def fold(x: Fold) -> Fold:
        ranges = tuple(Range(fn(r.lo), fn(r.hi), fn(r.full_lo), fn(r.full_hi)) for r in x.ranges)
        return replace(x.mapped(einsum, state), mask=optional(x.mask), ranges=ranges)

    return map_folds(map_einsums(c, einsum), fold)


def map_folds(c: AnyCascade, fn: Callable[[Fold], Fold]) -> AnyCascade:
    """Every fold of the cascade through ``fn``; the cascade itself where none changes."""
    body = tuple(fn(x) if isinstance(x, Fold) else x for x in c.body)
    return c if body == c.body else replace(c, body=body)


def map_einsums(c: AnyCascade, fn: Callable[[Einsum], Einsum]) -> AnyCascade:
    """Every statement outside folds through ``fn``, in order; the cascade itself where none changes."""
    body = tuple(fn(x) if isinstance(x, Einsum) else x for x in c.body)
    return c if body == c.body else replace(c, body=body)


def statements(c: Cascade) -> Iterator[Einsum | State]:
    """Every Einsum and State, those inside folds included, in order."""
    return (y for x in c.body for y in x.lines)


def flat(c: Cascade, refused: str, hint: str = "") -> Flat:
    """The cascade, which has no folds. Raises SpecError that says ``refused`` where it has one."""
    if not isinstance(c, Flat):
        raise SpecError(refused, c.folds[0].loc or c.loc, hint)
    return c


def every_einsum(c: Cascade) -> Iterator[Einsum]:
    """Those of the cascade, then those inside its folds."""
    yield from c.einsums
    for f in c.folds:
        yield from f.einsums


def lists(c: Cascade) -> set[str]:
    """The statements and inputs that some expression of a statement looks into as lists."""
    return {e.name for x in statements(c) for y in x.expressions for e in ex.walk(y) if e.op == "in"}


@overload
def prune(c: Flat) -> Flat: ...


@overload
def prune(c: Blocked) -> Blocked: ...


@overload
def prune(c: Cascade) -> Cascade: ...


def prune(c: Cascade) -> Cascade:
    """Without the statements that no output needs."""
    needed = set(c.outs)
    body: list[Statement] = []
    for x in reversed(c.body):
        match x:
            case Fold():
                kept = _prune_fold(x, needed)
                if kept is not None:
                    body.append(kept)
            case Einsum() if x.target in needed:
                body.append(x)
                for e in x.expressions:
                    needed |= ex.reads(e)
    if len(body) == len(c.body) and tuple(reversed(body)) == c.body:
        return c
    out = c.with_body(body[::-1])
    assert isinstance(out, Blocked) or not isinstance(c, Blocked), "what comes in blocks in order goes on doing so"
    return out


def types_of(c: Flat) -> dict[str, DType]:
    """The types of the inputs and statements."""
    types: dict[str, DType] = {t.name: t.dtype for t in c.inputs}
    for x in c.body:
        types[x.target] = x.reducer.gives(ex.scalar_type(x.map, lambda n: types.get(n, "float")))
    return types


def reading(c: Flat, made: Mapping[str, tuple[str, ...]], outs: Iterable[str], name: str) -> Flat:
    """What ``outs`` need of a cascade, with the statements that are ``made`` elsewhere (over these ambient ranks) as inputs."""
    types = types_of(c)
    sizes = {r.name: ex.size(r.size) for r in c.ranks}

    def explicit(e: Expr) -> Expr | None:
        if e.op not in ("load", "in") or e.name not in made:
            return None
        first = 1 if e.op == "in" else 0  # what is looked for stands before the indices
        args = [ex.substitute(a, explicit) for a in e.args]
        return replace(e, args=(*args[:first], *map(ex.index, made[e.name]), *args[first:]))

    body: list[Einsum] = []
    given: list[Tensor] = []
    for x in c.body:
        if x.target in made:
            axes = tuple(sizes[r] for r in (*made[x.target], *x.ranks))
            given.append(Tensor(x.target, axes, types[x.target]))
        else:
            mask = None if x.mask is None else ex.substitute(x.mask, explicit)
            body.append(replace(x, map=ex.substitute(x.map, explicit), mask=mask))
    out = prune(replace(c, name=name, body=tuple(body), outs=tuple(outs)))
    used = {n for x in statements(out) for e in x.expressions for n in ex.reads(e)}
    return replace(out, inputs=tuple(t for t in (*c.inputs, *given) if t.name in used))


def elsewhere(e: Expr, rank: str, ranks: Mapping[str, tuple[str, ...]]) -> bool:
    """Does an expression read one of the statements with these ``ranks`` at another point of ``rank`` than the reader's own?"""
    read = (y for y in ex.walk(e) if y.op == "load" and rank in ranks.get(y.name, ()))
    return any(y.args[ranks[y.name].index(rank)] != ex.index(rank) for y in read)


def used_ranks(c: Flat) -> set[str]:
    """The ranks that the statements have or mention."""
    used: set[str] = set()
    for x in c.body:
        used |= {*x.ranks, *x.over}.union(*map(ex.indices, x.expressions))
    return used


def with_used_ranks(c: Flat) -> Flat:
    """With the ambient ranks and `used_ranks` only."""
    used = used_ranks(c) | set(c.over)
    return replace(c, ranks=tuple(r for r in c.ranks if r.name in used))


def _prune_fold(f: Fold, needed: set[str]) -> Fold | None:
    while f.sequential:  # a state is read above its line too: what it needs is known only when nothing more is found
        before = len(needed)
        for x in f.body:
            if x.target in needed:
                needed.update(*(ex.reads(e) for e in x.expressions))
        if len(needed) == before:
            break
    body: list[Einsum | State] = []
    for x in reversed(f.body):
        if x.target in needed or (
            isinstance(x, State) and any(x.target in ex.names(e, "new") for y in body for e in y.expressions)
        ):
            body.append(x)
            for e in x.expressions:
                needed |= ex.reads(e) | ex.names(e, "new")
    if not body:
        return None
    for e in f.expressions:
        needed |= ex.reads(e)
    return replace(f, body=tuple(reversed(body)))


def taken(c: Flat) -> set[str]:
    """Every name that a new one must not be: of statements, inputs, ranks and sizes."""
    found = {x.target for x in c.body} | {t.name for t in c.inputs} | {r.name for r in c.ranks}
    found |= {r.size for r in c.ranks if isinstance(r.size, str)}
    return found.union(*(ex.sizes(a) for t in c.inputs for a in t.axes))


def fresh(base: str, taken: set[str]) -> str:
    """``base``, or ``base_2``, ``base_3``, ... : the first that is not taken; it is then."""
    name, n = base, 1
    while name in taken:
        n += 1
        name = f"{base}_{n}"
    taken.add(name)
    return name
