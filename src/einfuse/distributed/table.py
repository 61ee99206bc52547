"""By which exchange every spec of the library shards along its sequence: the table of docs/distributed.md."""

from __future__ import annotations

import einfuse
from einfuse.distributed.here import Axis, sequence
from einfuse.distributed.programs import EXCHANGES, Exchange, obstacle
from einfuse.ir import Cascade, SpecError

SHOWN = tuple(e for e in EXCHANGES if e not in ("ahead", "rows_back"))
"""The others are those of columns in another way."""


def row(name: str) -> str:
    """One spec: a mark for every exchange that it may take. States are those of keys whose rows all devices have."""
    c = einfuse.compile(name).cascade
    ranks = sequence(c)
    found = {e: _obstacle(c, ranks, e) for e in SHOWN}
    marks = ["" if error else "yes" for error in found.values()]
    why = next(iter(found.values())) if not any(marks) else None
    return f"| `{name}` | {', '.join(ranks)} | {' | '.join(marks)} | {why.message if why else ''} |"


def _obstacle(c: Cascade, ranks: tuple[str, ...], exchange: Exchange) -> SpecError | None:
    keys = tuple(r for r in ranks if c.rank(r).kind == "key")
    mine = keys if exchange == "states" and keys else ranks
    if not mine:
        return SpecError("the lengths of its sequences are numbers of the spec", c.loc)
    return obstacle(c, Axis("sequence", mine), exchange)


def table() -> str:
    """All specs, by name."""
    head = ["| spec | ranks | " + " | ".join(SHOWN) + " | why not |", "|---|---|" + "---|" * (len(SHOWN) + 1)]
    return "\n".join([*head, *(row(s.name) for s in einfuse.list_specs())]) + "\n"
