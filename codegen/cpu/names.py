"""Identifiers of a generated kernel: readable, legal in C++, and unique where they can be seen."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

_KEYWORDS = """alignas alignof and asm auto bool break case catch char class const constexpr continue default delete do double
else enum explicit export extern false float for friend goto if inline int long mutable namespace new not nullptr operator or
private protected public register return short signed sizeof static struct switch template this throw true try typedef typeid
union unsigned using virtual void volatile while xor std INF NOT_A_NUMBER MOST_BUFFERS T I V VI W l from n item last point past queue scratch
ptrs strides sizes params threads tiles points shared_tiles run_items run past n_threads most_threads work einfuse_kernel
main errno NULL""".split()
HEADERS = {p.stem: p for p in sorted(Path(__file__).parent.glob("*.h"))}


@functools.cache
def reserved() -> frozenset[str]:
    """The keywords, and the functions, macros and types of the headers, which no value of a plan may hide."""
    text = "\n".join(re.sub(r"//.*", "", p.read_text()) for p in HEADERS.values())
    words = re.findall(r"([A-Za-z_]\w*)\s*[(<{]|\b([A-Z]\w*)", text)
    return frozenset(_KEYWORDS) | frozenset(w for pair in words for w in pair if w)


def identifier(name: str) -> str:
    """``name`` with every character that C++ refuses replaced."""
    text = re.sub(r"_+", "_", re.sub(r"[^A-Za-z0-9_]", "_", name.replace("'", "_new")))
    return text if re.match(r"[A-Za-z]", text) else f"x{text}"


@dataclass(slots=True)
class Names:
    """The identifiers that can be seen in a scope; ``ever`` are those of all scopes, which buffers of the thread avoid."""

    taken: set[str] = field(default_factory=lambda: set(reserved()))
    ever: set[str] = field(default_factory=lambda: set(reserved()))

    def child(self) -> Names:
        """The names of a block inside: siblings may repeat them."""
        return Names(set(self.taken), self.ever)

    def fresh(self, name: str) -> str:
        return self._take(name, self.taken)

    def unique(self, name: str) -> str:
        """A name that no scope has used yet."""
        return self._take(name, self.ever)

    def _take(self, name: str, avoid: set[str]) -> str:
        base = identifier(name)
        text, n = base, 1
        while text in avoid or text in self.taken:
            n += 1
            text = f"{base}{'' if base.endswith('_') else '_'}{n}"
        self.taken.add(text)
        self.ever.add(text)
        return text
