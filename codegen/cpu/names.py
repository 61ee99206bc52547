"""Identifiers of a generated kernel: readable, legal in C++, and unique where they can be seen."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

_KEYWORDS = """alignas alignof and asm auto bool break case catch char class const constexpr continue default delete do double
else enum explicit export extern false float for friend goto if inline int long mutable namespace new not nullptr operator or
private protected public register return short signed sizeof static struct switch template this throw true try typedef typeid
union unsigned using virtual void volatile while xor std INF NOT_A_NUMBER bf16 f16 ptrs strides sizes params threads scratch queue
item first last rest done""".split()
HEADERS = {p.stem: p for p in sorted(Path(__file__).parent.glob("*.h"))}


def _reserved() -> frozenset[str]:
    """The keywords and every word that the headers use, so that no value of a plan hides a function."""
    words = {w for p in HEADERS.values() for w in re.findall(r"[A-Za-z_]\w*", re.sub(r"//.*", "", p.read_text()))}
    return frozenset(words) | frozenset(_KEYWORDS)


RESERVED = _reserved()


def identifier(name: str) -> str:
    """``name`` with every character that C++ refuses replaced."""
    text = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_]", "_", name.replace("'", "_new")))
    return text if re.match(r"[A-Za-z]", text) else f"x{text}"


@dataclass(slots=True)
class Names:
    """The identifiers taken so far."""

    taken: set[str] = field(default_factory=lambda: set(RESERVED))

    def fresh(self, name: str) -> str:
        base = identifier(name)
        text, n = base, 1
        while text in self.taken:
            n += 1
            text = f"{base}_{n}" if not base.endswith("_") else f"{base}{n}"
        self.taken.add(text)
        return text
