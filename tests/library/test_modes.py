"""docs/modes.md says of every spec in which modes it runs: no cell is blank, four fifths say yes, and a sample is run again."""

from __future__ import annotations

import re

import pytest

import einfuse
from einfuse.library import modes, recording, verified

SAMPLE = ("causal", "gated_delta", "swin_window", "deformable", "relative_position", "taylor2")
QUICK = ("forward mode", "backward twice", "step", "linear form")


def rows() -> dict[str, list[str]]:
    """The cells of the page by spec."""
    found = re.findall(r"^\| `\w+` \|.*\|$", modes.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", r)[1:-1]] for r in found]
    return {r[0].strip("`"): r[1:] for r in cells}


def test_every_spec_has_a_row_without_a_blank_cell() -> None:
    found = rows()
    assert set(found) == {s.name for s in einfuse.list_specs()}, "run python -m einfuse.library.modes"
    assert all(len(r) == len(modes.COLUMNS) - 1 and all(r) for r in found.values())
    cells = [c for r in found.values() for c in r]
    assert sum(map(modes.says_yes, cells)) >= 0.8 * len(cells)
    faults = re.compile(r"raised|\d apart|are wrong|not run|not verified")
    assert {n for n, r in found.items() if any(map(faults.search, r))} == set()


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_cells_is_run_again(name: str) -> None:
    line, known, path = rows()[name], recording.read()[name], verified.texts()[name]
    assert {c: recording.cell(recording.CHECKS[c], name) for c in QUICK} == {c: known[c] for c in QUICK}
    assert tuple(line) == modes._line(name, path, verified.read()[name], known, modes.kernels()[name])
