"""The table of docs/linear.md on what is checked of every recurrence is what the tests do: it is made of their own lists."""

from __future__ import annotations

import re
from pathlib import Path

import recurrences

import einfuse
from einfuse.library import verified

DOC = Path(__file__).parents[2] / "docs" / "linear.md"
PEERS = re.findall(r"^def test_(\w+)", Path(__file__).with_name("test_scan_peers.py").read_text(encoding="utf-8"), re.MULTILINE)
KERNELS = {"cpu float32", "cpu bfloat16", "triton float32", "triton bfloat16"}
HEAD = ("spec", "equals", "gradcheck", "strong decay", "documents", "from a state", "fla", "kernels")


def checked(name: str) -> tuple[str, ...]:
    """A row of the table."""
    optional = einfuse.compile(name, backend="torch").optional
    always = {"packed_linear"}  # it has documents without asking
    equals = [w for w, known in (("recurrence", recurrences.RECURRENT), ("quadratic", recurrences.QUADRATIC)) if name in known]
    gates = "yes" if name in recurrences.SPIKES else "no decay"
    from_state = name in recurrences.STARTED or (name in recurrences.RECURRENT and "initial" in optional)
    documents = name in recurrences.PACKED
    assert documents == ("doc" in optional or name in always), (
        f"{name} takes documents and no test packs them, or the other way"
    )
    assert from_state == any(n.startswith("initial") for n in optional), f"{name} takes a state and no test gives it one"
    record = verified.read()[name]
    kernels = record["wrong"] == 0 and set(record["on"]) >= KERNELS
    marks = ("yes" if x else "-" for x in (documents, from_state, name in PEERS, kernels))
    return (f"`{name}`", " and ".join(equals), "yes", gates, *marks)


def table() -> str:
    rows = [HEAD, ("---",) * len(HEAD), *(checked(n) for n in sorted({*recurrences.RECURRENT, *recurrences.QUADRATIC}))]
    return "".join(f"| {' | '.join(r)} |\n" for r in rows)


def test_the_table_is_what_the_tests_do() -> None:
    """Where this fails, this is the table: PYTHONPATH=tests/runtime python -c "from test_scan_table import table; print(table())"."""
    assert table() in DOC.read_text(encoding="utf-8")
