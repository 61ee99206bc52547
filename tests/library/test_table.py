"""library/README.md says what the library is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from torch import nn

import einfuse
from einfuse.library import layers, table

README = Path(table.__file__).resolve().parent / "README.md"


@pytest.mark.slow
def test_the_table_is_the_one_that_would_be_written() -> None:
    assert table.table() == README.read_text(encoding="utf-8"), "run `python -m einfuse.library.table`"


def test_every_spec_and_every_layer_is_in_it() -> None:
    text = README.read_text(encoding="utf-8")
    for s in einfuse.list_specs():
        assert f"| [{s.name}]({s.path.removeprefix('library/')}) |" in text, "run `python -m einfuse.library.table`"
        assert (README.parents[1] / s.path).is_file()
    public = {n for n, x in vars(layers).items() if inspect.isclass(x) and issubclass(x, nn.Module)}
    named = set(re.findall(r"\w+", text))
    built_on = table.built_on()
    inherited = {n for n in public if not built_on[n]}  # these name no spec: their base class does
    assert public - inherited <= named
    assert inherited <= {"Attending", "SwinV2Attention", "ClassQueryPooling", "SuperAttention"}


def test_no_cell_is_blank() -> None:
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    assert len(rows) >= 60
    assert not [r for r in rows if re.search(r"\|\s*\|", r)]


def test_known_rows() -> None:
    cells = {
        r.split("|")[1].strip(): [c.strip() for c in r.split("|")]
        for r in README.read_text(encoding="utf-8").splitlines()
        if "](" in r
    }
    assert cells["[full](specs/softmax/full.attn)"][-6:-2] == ["3 -> 1", "3", "-", "-"]
    assert cells["[causal](specs/masks/causal.attn)"][-4] == "formula"
    assert cells["[document](specs/masks/document.attn)"][-4] == "data"
    assert cells["[taylor2](specs/normaliser/taylor2.attn)"][-3] == "rank D \\* (D // 2 + 1) + D + 1, a scan"
    assert cells["[gat](specs/graph/gat.attn)"][-2] == "GraphAttention"
