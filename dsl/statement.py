"""One statement ``target[ranks] = value where condition``: its ranks, its checks, and what its name then means."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from einfuse.dsl import ast
from einfuse.dsl.emit import mask_of
from einfuse.dsl.names import Held
from einfuse.dsl.values import Value
from einfuse.ir import Einsum, conjunction

if TYPE_CHECKING:
    from einfuse.dsl.evaluate import Evaluator


def bind(scope: Evaluator, s: ast.Statement, keep: bool = False, named: bool = False) -> Held:
    """Elaborates a statement. ``named``: it stands in the attention itself and keeps its name.

    Integer and truth-valued statements without a reduction or a condition (``n = j - i``) are filled in where they are read, so that
    masks and indices stay visible to every analysis; ``keep`` makes them statements all the same.
    """
    scope.target, scope.reduced = s.target.text, set()
    before = len(scope.emitter.body)
    value = scope.value(s.value)
    last = scope.emitter.adopt(value, before, s.where is not None)
    over = last.over if last is not None else ()
    where = scope.condition(s.where) if s.where is not None else None
    ranks = _ranks(scope, s, value, where, over)
    if last is None and value.plain and value.cheap and value.dtype != "float" and where is None and not keep:
        return Held(s.target.text, ranks, value.dtype, value.space, value)
    repeated = scope.emitter.repeated(value, ranks) if last is None and where is None and not named else None
    if repeated is not None:
        return repeated
    mask = mask_of(where, value)
    loc = scope.place(s.target)
    if last is not None and last.reducer.slots and ranks[-1:] != last.ranks[-1:]:
        raise scope.fault(
            f"the slot `{last.ranks[-1]}` stands last in the target `{s.target}`",
            s.target,
            f"write {s.target}[{', '.join((*(r for r in ranks if r != last.ranks[-1]), last.ranks[-1]))}]",
        )
    if last is not None:
        statement = dataclasses.replace(last, target=s.target.text, ranks=ranks, mask=conjunction(last.mask, mask), loc=loc)
    else:
        statement = Einsum(s.target.text, ranks, None, (), value.expr, mask, loc)
    return scope.emitter.named(statement, value) if named else scope.emitter.unnamed(statement, value)


def _ranks(scope: Evaluator, s: ast.Statement, value: Value, where: Value | None, over: tuple[str, ...]) -> tuple[str, ...]:
    """The ranks of the target: as written, or the free ones in order of declaration."""
    free = value.ranks - scope.ambient
    outside = (where.ranks - scope.ambient if where is not None else frozenset()) - free - set(over)
    if s.ranks is None:
        for r in sorted(outside & scope.reduced):
            raise _reduced_outside(scope, s, r)
        return scope.emitter.sorted(free | outside)
    ranks: list[str] = []
    for name in s.ranks:
        rank = scope.rank(name)
        if rank in ranks:
            raise scope.fault(f"the rank `{name}` stands twice in the target `{s.target}`", name)
        if rank in scope.ambient:
            raise scope.fault(
                f"`{name}` is ambient: every statement has it",
                name,
                "leave it out of the target (it comes first in the output)",
            )
        ranks.append(rank)
    for r in scope.emitter.sorted((free | outside) - set(ranks)):
        if r in outside and r in scope.reduced:
            raise _reduced_outside(scope, s, r)
        raise scope.fault(
            f"the target `{s.target}` misses the rank `{r}`, which is free in its value",
            s.target,
            f"write {s.target}[{', '.join((*map(str, s.ranks), r))}], or reduce over {r}",
        )
    for r in ranks:
        if r in over:
            raise scope.fault(f"the target `{s.target}` keeps the rank `{r}` that it reduces over", s.target)
    return tuple(ranks)


def _reduced_outside(scope: Evaluator, s: ast.Statement, rank: str) -> Exception:
    assert s.where is not None, "the rank comes from the condition"
    return scope.fault(
        f"`{rank}` is reduced inside this statement, so its condition cannot mention it",
        s.where,
        f"move the condition into the reducer: sum[{rank}](... where ...)",
    )
