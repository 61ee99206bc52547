"""In which modes every spec works: docs/modes.md, written by `python -m einfuse.library.modes`. Every cell is on record or derived."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import einfuse
from einfuse.ir import SpecError
from einfuse.ir.passes import cache, pack
from einfuse.library import recording, verified
from einfuse.runtime.packed import Form

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "modes.md"
HEAD = """# Modes

In which ways every spec of the library runs, and the reason where it does not. Made by `python -m einfuse.library.modes`; a test finds every
spec in it and runs a sample of cells again. {good} of {all} cells ({share} %) say yes, and each of those was run:

* **forward**, **backward**, **CPU**, **Triton**, **bfloat16**: `einfuse verify`, values and gradients beside the float64 oracle, on both back
  ends in float32 and bfloat16 (library/verified.json). Forward says how many comparisons, backward how many kernels.
* **float16**: the same in float16. **forward mode**: `jvp`. **backward twice**: the gradient of gradients. **linear form**: in time linear in
  the tokens. **export**: a program of `torch.export`, on other values than it was traced with. **devices**: the exchanges by which two devices
  share the tokens ([many devices](distributed.md)). `python -m einfuse.library.recording` runs these, in float64 (library/modes.json).
* **decode**: `Attention.step` with states of constant size, or with keys that keep coming, by the same command; or the last rows of a sequence,
  from pages.
* **pages**: keys read from a cache in pages, one row or several at the end of each sequence (`einfuse.serving`); `pytest
  tests/serving/test_cache.py` runs every spec. **packed**: sequences of different lengths in one call (`einfuse.varlen`); `pytest
  tests/runtime/test_packed.py` runs every spec.
* **shared heads**: several heads of queries to one of keys, as `einfuse verify` has them.

A record is of one text of a spec; those of library/modes.json are also of the cascade that it was compiled to.

"""
COLUMNS = (
    *("spec", "forward", "backward", "forward mode", "backward twice", "decode", "pages", "packed", "shared heads", "devices"),
    *("linear form", "bfloat16", "float16", "CPU", "Triton", "export"),
)


def row(name: str) -> tuple[str, ...]:
    """The cells of one spec that are derived here: pages, packed, shared heads."""
    attention = einfuse.compile(name)
    c = attention.cascade
    return (
        told(lambda: cache.run(c)),
        told(lambda: Form.of(attention, {size: torch.tensor([0, 1]) for _, size in pack.axes(c).values()})),
        "yes" if any(a.op == "//" for t in c.inputs for a in t.axes) else "no: each its own keys",
    )


def kernels() -> dict[str, str]:
    """Of every spec what library/README.md says of its backward."""
    lines = (ROOT / "library" / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [re.split(r"(?<!\\)\|", r) for r in lines if r.startswith("| [") and "](specs" in r]
    return {r[1].partition("]")[0].strip(" ["): r[4].strip() for r in rows}


def told(make: Callable[[], object]) -> str:
    """``yes``, or the reason why not."""
    try:
        make()
    except (SpecError, ValueError) as error:
        reason = error.message if isinstance(error, SpecError) else str(error)
        return "no: " + re.sub(r"^\w+(?: cannot [\w ]+)?: ", "", reason)
    return "yes"


def lines() -> dict[str, tuple[str, ...]]:
    """The cells of every spec, in the order of the columns."""
    backward, known, ran = kernels(), verified.read(), recording.read()
    return {n: _line(n, path, known.get(n), ran.get(n, {}), backward[n]) for n, path in verified.texts().items()}


def _line(name: str, path: Path, known: verified.Finding | None, ran: recording.Line, backward: str) -> tuple[str, ...]:
    status = verified.status(path, known)
    on = known["on"] if known and verified.good(status) else []
    fresh = ran.get("content") == verified.content(path)
    cells = {
        c: str(ran.get(c, "not run yet")).replace(f"no: {name} ", "no: ") if fresh else "not run yet" for c in recording.CHECKS
    }
    pages, packed, shared = row(name)
    step = cells["step"] if cells["step"].startswith("yes") or pages != "yes" else "yes: last rows, from pages"

    def by(*words: str) -> str:
        return "yes" if any(set(words) <= set(o.split()) for o in on) else "not verified"

    first = status if on else f"no: {status}", backward if on and backward.isdigit() else f"no: {backward}"
    derivatives = cells["forward mode"], cells["backward twice"]
    rest = cells["linear form"], by("bfloat16"), cells["float16"], by("cpu"), by("triton"), cells["export"]
    return tuple(c.replace("|", "\\|") for c in (*first, *derivatives, step, pages, packed, shared, cells["devices"], *rest))


def says_yes(cell: str) -> bool:
    return not cell.startswith(("no", "raised"))


def page() -> str:
    """The text of docs/modes.md."""
    every = lines()
    cells = [c for line in every.values() for c in line]
    good = sum(map(says_yes, cells))
    head = HEAD.format(good=good, all=len(cells), share=100 * good // len(cells))
    table = "".join(f"| `{n}` | {' | '.join(line)} |\n" for n, line in every.items())
    return f"{head}| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n{table}"


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
