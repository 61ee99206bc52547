"""What `einfuse verify` found of every spec: library/verified.json, one line a spec, which the library's table and its tests read.

    einfuse verify --all --json > report.json           any number of specs; a file may hold any of them
    python -m einfuse.library.verified report.json      takes the findings over, and forgets specs that are gone

A finding is of one text: it counts as long as the spec, its docstring and comments apart, is the one that was verified.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import einfuse

FOLDER = Path(__file__).resolve().parent
RECORD = FOLDER / "verified.json"
Finding = dict[str, Any]
"""``content``: the hash of the text; ``on``: "back end, dtype" of the runs; ``comparisons``, ``wrong``: their number."""


def content(path: Path) -> str:
    """A hash of what a spec says."""
    text = re.sub(r'"""(?:.|\n)*?"""|#[^\n]*', "", path.read_text(encoding="utf-8"))
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]


def texts() -> dict[str, Path]:
    """The file of every spec."""
    return {s.name: FOLDER.parent / s.path for s in einfuse.list_specs()}


def findings(rows: Iterable[Mapping[str, Any]], paths: Mapping[str, Path]) -> dict[str, Finding]:
    """The rows of a report by spec. Raises ValueError for a spec that the library does not have."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for r in rows:
        name = r["name"].partition(" (")[0]  # "taylor_shift (linear)" is a form of a spec
        if name not in paths:
            raise ValueError(f"the report speaks of {r['name']}, which is no spec of the library")
        groups[name].append(r)
    return {
        name: {
            "content": content(paths[name]),
            "on": sorted({f"{r['backend']} {r['dtype']}" for r in group}),
            "comparisons": len(group),
            "wrong": sum(not r["ok"] for r in group),
        }
        for name, group in groups.items()
    }


def read() -> dict[str, Finding]:
    """What is on record."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def write(found: Mapping[str, Finding]) -> None:
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    RECORD.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def status(path: Path, finding: Finding | None) -> str:
    """One cell of the table: what is known of the text as it stands."""
    if finding is None:
        return "not verified yet"
    if finding["content"] != content(path):
        return "changed since it was verified"
    if finding["wrong"]:
        return f"{finding['wrong']} of {finding['comparisons']} wrong"
    return f"{finding['comparisons']} of {finding['comparisons']}"


def good(status: str) -> bool:
    """Is that the status of a spec whose every comparison, of the text as it stands, was right?"""
    return re.fullmatch(r"(\d+) of \1", status) is not None


def main(argv: Sequence[str] | None = None) -> int:
    """Takes reports over; returns 1 where a spec is not verified as it stands."""
    paths = texts()
    known = {name: f for name, f in read().items() if name in paths}
    for file in sys.argv[1:] if argv is None else argv:
        known |= findings(json.loads(Path(file).read_text(encoding="utf-8"))["rows"], paths)
    write(known)
    open_ = {name: status(path, known.get(name)) for name, path in paths.items()}
    open_ = {name: s for name, s in open_.items() if not good(s)}
    for name, s in open_.items():
        print(f"{name}: {s}")
    print(f"{len(paths) - len(open_)} of {len(paths)} specs are verified as they stand")
    return 1 if open_ else 0


if __name__ == "__main__":
    sys.exit(main())
