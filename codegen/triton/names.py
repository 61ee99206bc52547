"""Identifiers of a generated module: readable, legal in Python and Triton, and unique within the scopes that can see them."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass, field

from einfuse.ir.rewrite import fresh

RESERVED = frozenset(
    {"tl", "torch", "triton", "float", "int", "range", "launch", "tensors", "params", "sizes", "options", "BUSY"}
)


def identifier(name: str) -> str:
    """``name`` with every character that Python refuses replaced."""
    text = re.sub(r"\W", "_", name.replace("'", "_new").replace(".", "_"))
    return f"_{text}" if not text or text[0].isdigit() or keyword.iskeyword(text) else text


@dataclass(slots=True)
class Names:
    """Identifiers taken in a scope.

    A child scope (the body of a loop) avoids its parents' names, which Triton would take for loop-carried. Siblings may repeat
    names: one that first occurs in a loop ends with it.
    """

    taken: set[str] = field(default_factory=lambda: set(RESERVED))

    def child(self) -> Names:
        return Names(set(self.taken))

    def fresh(self, name: str) -> str:
        return fresh(identifier(name), self.taken)
