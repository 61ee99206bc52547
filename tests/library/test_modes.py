"""docs/modes.md says of every spec in which modes it runs: no cell is blank, and a sample is derived again."""

from __future__ import annotations

import re

import einfuse
from einfuse.library import modes, verified

SAMPLE = ("causal", "gated_delta", "swin_window", "deformable", "relative_position")


def test_every_spec_has_a_row_without_a_blank_cell() -> None:
    rows = [
        r[1:-1].split(" | ") for r in re.findall(r"^\| `\w+` \|.*\|$", modes.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    found = {r[0].strip(" `"): [c.strip() for c in r[1:]] for r in rows}
    assert set(found) == {s.name for s in einfuse.list_specs()}, "run python -m einfuse.library.modes"
    assert all(len(r) == len(modes.COLUMNS) - 1 and all(r) for r in found.values())
    backward, devices = modes.tables()
    record = verified.read()
    for name, path in verified.texts().items():
        assert found[name][0] == verified.status(path, record.get(name)), "run python -m einfuse.library.modes"
        assert (found[name][1], found[name][-1]) == (backward[name], devices[name])
    for name in SAMPLE:
        assert tuple(found[name][2:-1]) == modes.row(name)


def test_a_reason_is_told() -> None:
    assert modes.row("gated_delta")[1:3] == (
        "no: a scan has states, and reads no token again",
        "no: a scan runs through all tokens",
    )
    assert modes.told(lambda: "3") == "3"
