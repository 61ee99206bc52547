"""In which modes every spec works: docs/modes.md, written by `python -m einfuse.library.modes`. Every cell is derived or on record."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import einfuse
from einfuse.distributed.programs import EXCHANGES
from einfuse.ir import Fold, SpecError
from einfuse.ir.passes import cache, pack, tangent
from einfuse.library import verified
from einfuse.runtime.packed import Form

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "modes.md"
HEAD = """# Modes

In which ways every spec of the library can be run, and the reason where it cannot. Made by `python -m einfuse.library.modes`; a test finds
every spec in it and derives a sample of rows again.

* **verified**: comparisons of kernels with the float64 oracle that were good, values and gradients, on both back ends (CPU, Triton), in
  float32 and bfloat16.
* **backward**: kernels of the gradient of every float input. **forward mode**: `jvp` by one derived kernel; `interpreter`: as slow as plain
  torch.
* **pages**: keys read from a cache in pages, one row or several at the end of each sequence (`einfuse.serving`). **packed**: sequences of
  different lengths in one call (`einfuse.varlen`, jagged tensors).
* **shared heads**: several heads of queries to one of keys. **devices**: the exchanges by which it is sharded along its sequence
  ([many devices](distributed.md)); `-`: by batches and heads alone.

"""
COLUMNS = ("spec", "verified", "backward", "forward mode", "pages", "packed", "shared heads", "devices")


def row(name: str) -> tuple[str, ...]:
    """The cells of one spec that are derived here: forward mode, pages, packed, shared heads."""
    c = einfuse.compile(name).cascade
    wanted = [t.name for t in c.inputs if t.dtype == "float" and not t.param]
    chooses = any(not isinstance(x, Fold) and x.reducer.chooses for x in c.body)
    scanned = any(isinstance(x, Fold) for x in c.body)
    return (
        "interpreter" if scanned else "of what reads the choice" if chooses else told(lambda: tangent.run(c, wanted)),
        told(lambda: cache.run(c)),
        told(lambda: Form.of(einfuse.compile(name), {size: torch.tensor([0, 1]) for _, size in pack.axes(c).values()})),
        "yes" if any(a.op == "//" for t in c.inputs for a in t.axes) else "each its own",
    )


def tables() -> tuple[dict[str, str], dict[str, str]]:
    """Of every spec what library/README.md says of its backward, and docs/distributed.md of the exchanges."""
    rows = re.findall(
        r"^\| \[(\w+)\]\(specs.*$", text := (ROOT / "library" / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    lines = (r for r in text.splitlines() if r.startswith("| ["))
    backward = {
        n: re.split(r"(?<!\\)\|", r)[4].strip() for n, r in zip(rows, (r for r in lines if "](specs" in r), strict=True)
    }
    devices = {}
    shards = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8").partition("<!-- shards -->")[2]
    for r in re.findall(r"^\| `\w+` \|.*$", shards, re.MULTILINE):
        cells = [c.strip() for c in r.split("|")[1:-1]]
        marks = zip(EXCHANGES, cells[2 : 2 + len(EXCHANGES)], strict=True)
        devices[cells[0].strip("`")] = ", ".join(e for e, mark in marks if mark == "yes") or "-"
    return backward, devices


def told(make: Callable[[], object]) -> str:
    """What was made where it is a text, else ``yes``; or the reason why not."""
    try:
        made = make()
    except (SpecError, ValueError) as error:
        reason = error.message if isinstance(error, SpecError) else str(error)
        return "no: " + re.sub(r"^\w+(?: cannot [\w ]+)?: ", "", reason).replace("|", "\\|")
    return made if isinstance(made, str) else "yes"


def page() -> str:
    """The text of docs/modes.md."""
    backward, devices = tables()
    paths, record = verified.texts(), verified.read()
    lines = []
    for n, path in paths.items():
        cells = (f"`{n}`", verified.status(path, record.get(n)), backward[n], *row(n), devices[n])
        lines.append(f"| {' | '.join(cells)} |\n")
    return f"{HEAD}| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n" + "".join(lines)


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
