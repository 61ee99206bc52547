"""The pages of the documentation site: of a few specs, and no link that leads nowhere."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import einfuse
from einfuse.library.gallery import page, poster, site

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("alibi_window", "linear", "map_gate")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages")
    site(out, [s for s in einfuse.list_specs() if s.name in NAMES])
    return out


def test_a_page_shows_text_passes_and_tiles() -> None:
    (spec,) = (s for s in einfuse.list_specs() if s.name == "alibi_window")
    text, card = page(spec, ["Layer"])
    assert text.startswith("# alibi_window\n\nALiBi in a causal window (Press et al.")
    assert f"```attn\n{spec.text.rstrip()}\n```" in text
    assert "<p>over <code>j</code>: 3 passes -&gt; 1</p>" in text
    assert "27 % of tiles live at 1024" in text
    assert "## Built on it\n\n`Layer`" in text
    assert re.match(r'\| \[<svg [^>]*width="72" height="72".*</svg>\]\(alibi_window.md\)<br>\[alibi_window\]', card)


def test_the_picture_of_the_readme_is_drawn_from_the_specs() -> None:
    file = ROOT / "docs" / "tiles.svg"
    assert file.read_text(encoding="utf-8") == poster(), "run `python -m einfuse.library.gallery docs/tiles.svg --picture`"
    drawn = ET.parse(file).getroot()
    assert [x.get("aria-label") for x in drawn.iter(f"{SVG}svg")][1] == "53 % of tiles live"
    assert "docs/tiles.svg" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_signs_of_formulas_are_no_markdown(pages: Path) -> None:
    assert r"o\_i = x\_i + softmax\_i(a\_i) x\_i" in (pages / "gallery" / "map_gate.md").read_text()


def test_every_link_leads_to_a_file(pages: Path) -> None:
    missing = []
    for path in pages.rglob("*.md"):
        text = re.sub(
            r"^```.*?^```|<pre>.*?</pre>|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
        )
        for target in re.findall(r"\]\(([^)#:\s]+)[)#]", text):
            if not os.path.exists(os.path.normpath(path.parent / target)):
                missing.append(f"{path.relative_to(pages)}: {target}")
    assert missing == []
    assert {p.stem for p in (pages / "gallery").iterdir()} == {*NAMES, "index"}
