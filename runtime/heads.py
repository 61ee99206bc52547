"""Calls of one query whose heads share keys: heads become rows of a tile (`ir.passes.heads_as_rows`), so keys are read once a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from einfuse.ir import expr as ex
from einfuse.ir.passes import heads_as_rows
from einfuse.runtime.binding import evaluate
from einfuse.runtime.given import Given

if TYPE_CHECKING:
    from einfuse.runtime.program import Program


@dataclass(frozen=True, slots=True)
class Heads:
    """The program of the same attention with heads as rows."""

    stacked: heads_as_rows.Stacked
    program: Program

    def taken(self, given: Given) -> Given | None:
        """What its program takes for a call; None for a call of several queries, or of as many heads of keys as of queries."""
        asked = (ex.size(self.stacked.rows.size), ex.size(self.stacked.heads.size), self.stacked.group)
        rows, heads, group = (int(evaluate(e, given.sizes)) for e in asked)
        shared = rows == 1 and group > 1 and heads % group == 0
        return given.more(sizes={self.stacked.groups: heads // group}) if shared else None


def stacked(program: Program) -> Heads | None:
    """The other program of a program, or None where heads share nothing, or more than queries tells rows apart."""
    found = heads_as_rows.run(program.cascade)
    return Heads(found, type(program)(found.cascade, program.strict, program.wide)) if found else None
