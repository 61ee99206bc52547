"""Every paper of the catalogue once, with what became of it: library/catalogue.toml, and docs/catalogue.md, which
`python -m einfuse.library.catalogue` writes.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import einfuse
from einfuse.library import layers

DATA = Path(__file__).resolve().parent / "catalogue.toml"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "catalogue.md"
SECTIONS = {"A": ("Attention", 183), "B": ("Other ways to mix tokens", 24), "C": ("Executing attention", 19)}
NEWER = "N"
"""The letter of what the catalogue does not have."""
STATUSES = ("works", "later", "out")
HEAD = """# The catalogue

Every paper of the catalogue that the library was written from, by its number there, and what became of it. Made by
`python -m einfuse.library.catalogue`; a test keeps it true. *works*: the specs and layers that are named say it, beside formulas written from
the paper ([the library](../library/README.md) has the record). Where no spec stands among them, they are convolutions, transforms
and gates, in which no token meets another through a score. *later*: it could be written, and the line says what is missing. *out*: the line
says why it is not here.

"""


@dataclass(frozen=True, slots=True)
class Entry:
    """One paper. ``why`` is the reason of a ``status`` that is not works, and what works where it is no spec or layer."""

    number: str
    name: str
    status: str = "works"
    specs: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    why: str = ""

    @property
    def what(self) -> str:
        """Specs and layers, or the reason."""
        return ", ".join(f"`{n}`" for n in (*self.specs, *self.layers)) or self.why


def entries(path: Path = DATA) -> list[Entry]:
    """All of them, in the catalogue's order, and then what is newer.

    Raises ValueError where the file is no TOML, an entry says nothing or names what is not there, or a number is missing or unknown.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    known = {s.name for s in einfuse.list_specs()}
    found = {number: _entry(number, says, known) for number, says in data.items()}
    newer = sum(n.startswith(NEWER) for n in found)
    wanted = [
        f"{letter}{n}"
        for letter, most in (*((x, m) for x, (_, m) in SECTIONS.items()), (NEWER, newer))
        for n in range(1, most + 1)
    ]
    if wrong := sorted(set(wanted) ^ set(found)):
        raise ValueError(f"{path}: missing or unknown: {', '.join(wrong)}")
    return [found[n] for n in wanted]


def _entry(number: str, says: Mapping[str, Any], known: set[str]) -> Entry:
    given: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in says.items()}
    try:
        found = Entry(number, **given)
    except TypeError as error:  # a key that entries do not have, or no name
        raise ValueError(f"{number}: an entry has a name, status, specs, layers and why: {error}") from error
    missing = [s for s in found.specs if s not in known] + [c for c in found.layers if not hasattr(layers, c)]
    if missing:
        raise ValueError(f"{number} {found.name}: there is no {', '.join(missing)}")
    if found.status not in STATUSES or not found.what:
        raise ValueError(
            f"{number} {found.name}: specs or layers, or one of {', '.join(STATUSES)} with its reason, found {dict(says)}"
        )
    return found


def mechanisms() -> list[Entry]:
    """Those between tokens that specs and layers say."""
    return [e for e in entries() if e.number[0] in "AB" and (e.specs or e.layers)]


def page() -> str:
    """The text of docs/catalogue.md."""
    every = entries()
    parts = [HEAD]
    for letter, (title, _) in SECTIONS.items():
        mine = [e for e in every if e.number.startswith(letter)]
        counts = ", ".join(f"{sum(e.status == s for e in mine)} {s}" for s in STATUSES)
        parts.append(f"## {title}\n\n{counts}.\n\n| number | paper | | specs and layers, or the reason |\n|---|---|---|---|\n")
        parts += [f"| {e.number} | {e.name} | {e.status} | {e.what} |\n" for e in mine]
        parts.append("\n")
    newer = [e for e in every if e.number.startswith(NEWER)]
    parts.append(f"## What came after\n\n{len(newer)} mechanisms that are newer than the catalogue, or beside it.\n\n")
    parts.append("| | mechanism | specs and layers |\n|---|---|---|\n")
    parts += [f"| {e.number} | {e.name} | {e.what} |\n" for e in newer]
    return "".join(parts)


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
