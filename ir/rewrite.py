"""Helpers for passes: map a function over the expressions or statements of a cascade."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, DType, Einsum, Expr, Fold, Range, State, Tensor


def map_expressions(c: Cascade, fn: Callable[[Expr], Expr]) -> Cascade:
    """Every map, mask, carry and range of the cascade through ``fn``."""

    def optional(e: Expr | None) -> Expr | None:
        return None if e is None else fn(e)

    def one(x: Einsum | State | Fold) -> Einsum | State | Fold:
        if isinstance(x, Einsum):
            return replace(x, map=fn(x.map), mask=optional(x.mask))
        if isinstance(x, State):
            return replace(x, map=fn(x.map), carry=optional(x.carry), init=optional(x.init))
        ranges = tuple(Range(fn(r.lo), fn(r.hi), fn(r.full_lo), fn(r.full_hi)) for r in x.ranges)
        return replace(x, body=tuple(one(y) for y in x.body), mask=optional(x.mask), ranges=ranges)  # type: ignore[misc]

    return replace(c, body=tuple(one(x) for x in c.body))  # type: ignore[misc]


def statements(c: Cascade) -> Iterator[Einsum | State]:
    """Every Einsum and State, those inside folds included, in order."""
    for x in c.body:
        if isinstance(x, Fold):
            yield from x.body
        else:
            yield x


def expressions(x: Einsum | State | Fold) -> Iterator[Expr]:
    """The expressions of one statement (of a fold: its own mask and ranges, not its body)."""
    if isinstance(x, Fold):
        for r in x.ranges:
            yield from (r.lo, r.hi, r.full_lo, r.full_hi)
    else:
        yield x.map
    extra = (x.carry, x.init) if isinstance(x, State) else (x.mask,)
    yield from (e for e in extra if e is not None)


def lists(c: Cascade) -> set[str]:
    """The statements and inputs that some expression of a statement looks into as lists."""
    return {e.name for x in statements(c) for y in expressions(x) for e in ex.walk(y) if e.op == "in"}


def prune(c: Cascade) -> Cascade:
    """Without the statements that no output needs."""
    needed = set(c.outs)
    body: list[Einsum | Fold] = []
    for x in reversed(c.body):
        if isinstance(x, Fold):
            kept = _prune_fold(x, needed)
            if kept is not None:
                body.append(kept)
        elif x.target in needed:
            body.append(x)
            for e in expressions(x):
                needed |= ex.reads(e)
    return c if len(body) == len(c.body) and tuple(reversed(body)) == c.body else replace(c, body=tuple(reversed(body)))


def types_of(c: Cascade) -> dict[str, DType]:
    """The types of the inputs and statements of a cascade without folds."""
    types: dict[str, DType] = {t.name: t.dtype for t in c.inputs}
    for x in c.body:
        assert isinstance(x, Einsum), "asked before folds exist"
        types[x.target] = x.reducer.gives(ex.scalar_type(x.map, lambda n: types.get(n, "float")))
    return types


def reading(c: Cascade, made: Mapping[str, tuple[str, ...]], outs: Iterable[str], name: str) -> Cascade:
    """What ``outs`` need of a cascade without folds, with the statements that are ``made`` elsewhere (over these ambient ranks) as inputs."""
    types = types_of(c)
    sizes = {r.name: ex.size(r.size) for r in c.ranks}

    def explicit(e: Expr) -> Expr | None:
        if e.op not in ("load", "in") or e.name not in made:
            return None
        first = 1 if e.op == "in" else 0  # what is looked for stands before the indices
        args = [ex.substitute(a, explicit) for a in e.args]
        return replace(e, args=(*args[:first], *map(ex.index, made[e.name]), *args[first:]))

    body: list[Einsum | Fold] = []
    given: list[Tensor] = []
    for x in c.body:
        assert isinstance(x, Einsum), "kernels are cut before folds exist"
        if x.target in made:
            axes = tuple(sizes[r] for r in (*made[x.target], *x.ranks))
            given.append(Tensor(x.target, axes, types[x.target]))
        else:
            mask = None if x.mask is None else ex.substitute(x.mask, explicit)
            body.append(replace(x, map=ex.substitute(x.map, explicit), mask=mask))
    out = prune(replace(c, name=name, body=tuple(body), outs=tuple(outs)))
    used = {n for x in statements(out) for e in expressions(x) for n in ex.reads(e)}
    return replace(out, inputs=tuple(t for t in (*c.inputs, *given) if t.name in used))


def elsewhere(e: Expr, rank: str, ranks: Mapping[str, tuple[str, ...]]) -> bool:
    """Does an expression read one of the statements with these ``ranks`` at another point of ``rank`` than the reader's own?"""
    read = (y for y in ex.walk(e) if y.op == "load" and rank in ranks.get(y.name, ()))
    return any(y.args[ranks[y.name].index(rank)] != ex.index(rank) for y in read)


def used_ranks(c: Cascade) -> set[str]:
    """The ranks that the statements of a cascade without folds have or mention."""
    used: set[str] = set()
    for x in statements(c):
        assert isinstance(x, Einsum), "asked before folds exist"
        used |= {*x.ranks, *x.over}.union(*map(ex.indices, expressions(x)))
    return used


def with_used_ranks(c: Cascade) -> Cascade:
    """With the ambient ranks and `used_ranks` only."""
    used = used_ranks(c) | set(c.over)
    return replace(c, ranks=tuple(r for r in c.ranks if r.name in used))


def _prune_fold(f: Fold, needed: set[str]) -> Fold | None:
    while f.sequential:  # a state is read above its line too: what it needs is known only when nothing more is found
        before = len(needed)
        for x in f.body:
            if x.target in needed:
                needed.update(*(ex.reads(e) for e in expressions(x)))
        if len(needed) == before:
            break
    body: list[Einsum | State] = []
    for x in reversed(f.body):
        if x.target in needed or (
            isinstance(x, State) and any(x.target in ex.names(e, "new") for y in body for e in expressions(y))
        ):
            body.append(x)
            for e in expressions(x):
                needed |= ex.reads(e) | ex.names(e, "new")
    if not body:
        return None
    for e in expressions(f):
        needed |= ex.reads(e)
    return replace(f, body=tuple(reversed(body)))


def taken(c: Cascade) -> set[str]:
    """Every name of a cascade without folds that a new one must not be: of statements, inputs, ranks and sizes."""
    found = {x.target for x in c.body if isinstance(x, Einsum)} | {t.name for t in c.inputs} | {r.name for r in c.ranks}
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
