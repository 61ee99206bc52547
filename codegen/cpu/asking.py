"""Rows that the next turn gathers, asked for while this one computes: the machine cannot guess where they lie.

lane, turn:  at = rows[lane, turn, i] ; x = q[.., at, d]     ->     for every r: ask(q[.., rows[lane, turn + 1, r], 0 ..])
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from einfuse.codegen.cpu.access import offset, scalar_index
from einfuse.codegen.cpu.functions import Ref
from einfuse.codegen.cpu.text import Scope, Text
from einfuse.codegen.plan import Coordinate, KernelPlan, Load, Op, Store, Value


def ask(text: Text, scope: Scope, plan: KernelPlan) -> None:
    """Prints the loop, where points of the plan take turns and gather rows of its tile by lists of their own."""
    turn = next((b for b in plan.ambient if b.turns), None)
    if turn is None or plan.tile is None:
        return
    made = {op.out.name: op for op in plan.outer if not isinstance(op, Store)}
    loads = [op for op in plan.outer if isinstance(op, Load) and op.out.dims[:1] == (plan.tile.rank,)]
    by_list: dict[str, list[Load]] = {}
    for op in loads:
        lists = {i.name for i in op.index if i.dims == (plan.tile.rank,) and _listed(made.get(i.name), turn.rank, made)}
        if len(lists) == 1:
            by_list.setdefault(lists.pop(), []).append(op)
    extent = scope.extents[plan.tile.rank]
    for name, gathers in by_list.items():
        given = made[name]
        assert isinstance(given, Load), "a list is loaded"
        row, next_ = text.fresh("row"), text.fresh(f"next_{name}")
        lines = [line for op in gathers for line in _asked(scope, op, name, next_, made)]
        at = scope.scalars[f"coordinate {turn.rank}"].text
        with text.block(
            f"if ({at} + 1 < {scope.scalars[f'size {turn.size}'].text}) for (long {row} = 0; {row} < {extent.count}; ++{row})"
        ):
            tensor = scope.scalars[f"tensor {given.tensor}"].text
            terms = [(n, _place(scope, i, made, turn.rank, f"({extent.start} + {row})")) for n, i in enumerate(given.index)]
            text.line(f"const long {next_} = *({offset(tensor, terms)});")
            for line in lines:
                text.line(line)


def _listed(op: Op | None, turn: str, made: Mapping[str, Op]) -> bool:
    """Is a value read from a list of the turn, at coordinates alone?"""
    if not isinstance(op, Load) or op.where is not None:
        return False
    at = [made.get(i.name) for i in op.index]
    return all(isinstance(x, Coordinate) for x in at) and any(isinstance(x, Coordinate) and x.rank == turn for x in at)


def _place(scope: Scope, i: Value, made: Mapping[str, Op], turn: str, row: str) -> str:
    """A coordinate of a list, for the next turn."""
    op = made[i.name]
    assert isinstance(op, Coordinate), "a list is read at coordinates"
    if i.dims:
        return row
    here = scope.scalars[f"coordinate {op.rank}"].text
    return f"({here} + 1)" if op.rank == turn else here


def _asked(scope: Scope, op: Load, name: str, next_: str, made: Mapping[str, Op]) -> Iterator[str]:
    """The row of a load; nothing where its other coordinates are not those of a row that lies together."""
    tensor, terms = scope.scalars[f"tensor {op.tensor}"].text, []
    for n, i in enumerate(op.index):
        if i.name == name:
            terms.append((n, scalar_index(Ref(next_, "int"), tensor, n, op.clamp)))
        elif not i.dims and i.name in scope.scalars:
            terms.append((n, scalar_index(scope.scalars[i.name], tensor, n, op.clamp)))
        elif not isinstance(made.get(i.name), Coordinate):
            return
    count = scope.extents[op.out.dims[1]].count if len(op.out.dims) > 1 else "1"
    yield f"ask({offset(tensor, terms)}, {count});"
