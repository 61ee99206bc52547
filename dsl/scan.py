"""``scan i { ... }``: statements and states that go along a rank point by point.

A scan becomes one sequential fold. Above its line a state is the value carried from the point before, below it the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.dsl import ast
from einfuse.dsl.names import Held
from einfuse.dsl.statement import bind
from einfuse.dsl.values import Value
from einfuse.ir import State

if TYPE_CHECKING:
    from collections.abc import Collection

    from einfuse.dsl.evaluate import Evaluator


def bind_scan(scope: Evaluator, scan: ast.Scan, kept: Collection[str]) -> None:
    """Elaborates a scan; its statements and states are bound in ``scope``. Raises SpecError."""
    rank = scope.rank(scan.rank)
    if rank in scope.ambient:
        raise scope.fault(
            f"`{rank}` is ambient: every point of it is computed alone, so nothing is carried along it",
            scan.rank,
            f"take `{rank}` out of `over` and declare it: rank {rank}: query",
        )
    lines = [x for x in scan.body if isinstance(x, ast.StateLine)]
    if not lines:
        raise scope.fault(
            "a scan without a state carries nothing",
            scan,
            "write the statements outside the scan, or a line `state S[d, e] = ...`",
        )
    initial = {x.target.text: _initial(scope, x, rank) for x in lines}
    since = len(scope.emitter.body)
    for x in lines:
        scope.scope[x.target.text] = Held(x.target.text, _ranks(scope, x, rank), "float", along=rank)
    for element in scan.body:
        before = len(scope.emitter.body)
        if isinstance(element, ast.StateLine):
            _state(scope, element, rank, initial[element.target.text])
        else:
            name = element.target.text
            scope.scope[name] = bind(scope, element, keep=name in kept, named=True)
        for y in scope.emitter.body[before:]:
            if rank in y.over:
                raise scope.fault(
                    f"the scanned rank `{rank}` cannot be reduced over inside the scan",
                    element,
                    "carry the sum in a state, or reduce outside",
                )
    scope.emitter.scanned(rank, since, scope.place(scan))
    for x in lines:  # from here on the name is the final state
        scope.scope[x.target.text] = Held(x.target.text, _ranks(scope, x, rank), "float")


def _ranks(scope: Evaluator, x: ast.StateLine, scanned: str) -> tuple[str, ...]:
    ranks: list[str] = []
    for name in x.ranks:
        r = scope.rank(name)
        if r in ranks:
            raise scope.fault(f"the rank `{r}` stands twice in the state `{x.target}`", name)
        if r in scope.ambient:
            raise scope.fault(f"`{r}` is ambient: every state has it", name, "leave it out of the state")
        if r == scanned:
            raise scope.fault(
                f"the state `{x.target}` keeps the rank `{r}` that the scan goes along", name, "leave it out of the state"
            )
        ranks.append(r)
    return tuple(ranks)


def _initial(scope: Evaluator, x: ast.StateLine, scanned: str) -> Value | None:
    """What a state starts from; elaborated before the scan."""
    if x.initial is None:
        return None
    scope.target, scope.reduced = x.target.text, set()
    value = scope.value(x.initial)
    _fits(scope, x, x.initial, value, frozenset(_ranks(scope, x, scanned)), "initial value")
    return value if value.constant != 0 else None


def _state(scope: Evaluator, x: ast.StateLine, scanned: str, initial: Value | None) -> None:
    scope.target, scope.reduced = x.target.text, set()
    value = scope.value(x.value)
    ranks = _ranks(scope, x, scanned)
    _fits(scope, x, x.value, value, frozenset((*ranks, scanned)), "value")
    if value.space or value.lost:
        raise scope.fault(
            f"the state `{x.target}` reads a statement that does not exist everywhere",
            x.value,
            "write a choice instead of a `where`: (x if condition else 0)",
        )
    init = initial.expr if initial is not None else None
    scope.emitter.state(State(x.target.text, ranks, "set", value.expr, init=init, loc=scope.place(x.target)))


def _fits(scope: Evaluator, x: ast.StateLine, at: ast.Expr, value: Value, ranks: frozenset[str], what: str) -> None:
    if value.dtype == "bool":
        raise scope.fault(
            f"the {what} of the state `{x.target}` is a condition", at, "a state holds numbers: write float(condition)"
        )
    extra = scope.emitter.sorted(value.ranks - ranks - scope.ambient)
    if extra:
        raise scope.fault(
            f"the {what} of the state `{x.target}` has the rank `{extra[0]}`, which the state has not",
            at,
            f"write {x.target}[{', '.join((*map(str, x.ranks), extra[0]))}], or reduce over {extra[0]}",
        )
