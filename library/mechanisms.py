"""Which mechanisms of the catalogue work, and what holds them. `python -m einfuse.library.mechanisms` checks and counts them."""

from __future__ import annotations

import sys

from einfuse.library import catalogue, verified


def section() -> str:
    """The mechanisms as a part of library/README.md."""
    every = catalogue.mechanisms()
    rows = [
        f"| {m.number} | {m.name} | {', '.join(m.specs) or 'torch alone'} | {', '.join(m.layers) or 'none needed'} |\n"
        for m in every
    ]
    count = f"{len(every)} work; the numbers are the catalogue's. `python -m einfuse.library.mechanisms` counts them."
    head = f"## Mechanisms of the catalogue\n\n{count}\n\n"
    return head + "| number | mechanism | specs | layers |\n|---|---|---|---|\n" + "".join(rows)


def main() -> int:
    """Prints them with what verification found; returns 1 where a spec of one is not verified as it stands."""
    paths, record = verified.texts(), verified.read()
    every = catalogue.mechanisms()
    late = 0
    for m in every:
        found = {s: verified.status(paths[s], record.get(s)) for s in m.specs}
        late += not all(verified.good(s) for s in found.values())
        print(f"{m.number:5} {m.name:28} {', '.join(f'{s} ({x})' for s, x in found.items())}  {' '.join(m.layers)}")
    print(f"{len(every)} mechanisms, {late} of them with a spec that is not verified as it stands")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
