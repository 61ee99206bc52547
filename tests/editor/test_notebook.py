"""Attentions in notebooks: how they show themselves, and cells that are specs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

import einfuse
from einfuse.ir.passes.kernels import kernels
from einfuse.runtime.picture import COLOURS, picture

CELL = """attention near(window: int = 64) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, j, d]; in v[b, h, j, e]
  s = sum[d](q * k) where 0 <= i - j < window
  o = sum[j](softmax[j](s) * v)
  out o
}
"""


def test_a_cell_becomes_an_attention(shell: Any) -> None:
    shell.run_cell_magic("attn", "mine window=128", CELL)
    assert shell.user_ns["mine"].cascade.inputs[-1].default == 128
    shell.run_cell_magic("attn", "", CELL)
    assert shell.user_ns["near"].cascade.inputs[-1].default == 64


def test_a_wrong_cell_says_where(shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shell.user_ns.pop("near", None)
    assert shell.run_cell_magic("attn", "", CELL.replace("* v", "* vv")) is None
    said = capsys.readouterr().err
    assert "<text>:5:30: the name `vv` is not known here" in said
    assert "did you mean `v`?" in said
    assert "near" not in shell.user_ns


def test_a_line_that_is_no_name_is_refused(shell: Any) -> None:
    with pytest.raises(ValueError, match="'2x' is no name"):
        shell.run_cell_magic("attn", "2x", CELL)


def test_one_line_says_what_a_call_takes() -> None:
    found = repr(einfuse.compile(CELL))
    assert found == "<einfuse attention near(q[B, H, Nq, D], k[B, H, Nk, D], v[B, H, Nk, E], window=64) -> o>"


def test_a_notebook_shows_equations_passes_and_tiles() -> None:
    found = einfuse.compile(CELL.replace("attention", '"""A <window>."""\nattention'))._repr_mimebundle_()
    assert found["text/plain"].startswith("<einfuse attention near(")
    assert found["text/plain"].endswith("over j: 3 passes -> 1\n12 % of tiles live at 1024")
    page = ET.fromstring(f"<div>{found['text/html']}</div>")
    assert page[0].tail is not None
    assert "A <window>." in page[0].tail
    equations = page.find("pre")
    assert equations is not None
    assert "s[i, j]" in "".join(equations.itertext())
    assert [x.text for x in page.iter("th")] == ["statistic", "read by", "how", "with", "proof"]
    assert {x.text for x in page.iter("td")} >= {"carry", "proven"}
    (svg,) = page.iter("{http://www.w3.org/2000/svg}svg")
    assert svg.get("aria-label") == "12 % of tiles live"


def test_a_picture_is_drawn_from_the_mask() -> None:
    """Every tile of the diagonal and the one before it is partial: the window is as long as a tile."""
    found = picture(einfuse.compile(CELL).cascade, length=256)
    assert found is not None
    drawn = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="1" fill="(#\w+)"/>', found.svg())
    assert drawn == [("0", "0", "1", COLOURS[1])] + [(str(y - 1), str(y), "2", COLOURS[1]) for y in (1, 2, 3)]
    assert found.certain
    assert picture(einfuse.compile(CELL.replace("where 0 <= i - j < window", "")).cascade) is None


def test_a_table_that_is_not_known_leaves_tiles_partial() -> None:
    text = CELL.replace("in v", "in doc[b, j]: int; in v").replace("0 <= i - j < window", "doc[b, i] == doc and j <= i")
    found = picture(einfuse.compile(text).cascade)
    assert found is not None
    assert found.live.startswith("at most 53 %")


def test_of_an_attention_that_chooses_what_reads_the_lists_is_drawn() -> None:
    found = picture(einfuse.compile("moba").cascade)
    assert found is not None
    assert found.size == (1024, 1024)
    assert found.live.startswith("at most")


@pytest.mark.parametrize("name", ["causal", "moba", "gla", "talking_heads", "quest"])
def test_the_kernels_of_a_spec_are_those_that_run(name: str) -> None:
    attention = einfuse.compile(name)
    assert kernels(attention.cascade) == tuple(k.cascade for k in attention.kernels)
