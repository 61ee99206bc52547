"""The pages of the documentation site: of a few specs, and no link that leads nowhere."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import einfuse
from einfuse import dsl
from einfuse.library.formulas import formulas
from einfuse.library.gallery import page, site
from einfuse.library.pictures import PICTURES

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
    assert "| `alibi_window` | " in text.partition("## Cost")[2]
    assert "## Built on it\n\n`Layer`" in text
    assert re.match(r'\| \[<svg [^>]*width="72" height="72".*</svg>\]\(alibi_window.md\)<br>\[alibi_window\]', card)


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_of_the_readme_are_drawn_from_the_specs(name: str) -> None:
    file = ROOT / "docs" / name
    assert file.read_text(encoding="utf-8") == PICTURES[name](), "run `python -m einfuse.library.pictures docs`"
    labels = [x.get("aria-label") for x in ET.parse(file).getroot().iter(f"{SVG}svg")]
    assert labels[1] == {"overview.svg": "27 % of tiles live", "tiles.svg": "53 % of tiles live"}[name]
    assert f"docs/{name}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("o[i, e] = sum[j](exp(s) * v)", "o_(i,e)=(\u2211)_(j) e^(s_(i,j)) v_(j,e)"),
        ("o[i, e] = q * (q + 1)", "o_(i,e)=q_(i,e) (q_(i,e)+1)"),
        ("o[i, e] = sum[j](s - v)", "o_(i,e)=(\u2211)_(j) (s_(i,j)\u2212v_(j,e))"),
        ("o[i, e] = sqrt(q) / (1 + q)", "o_(i,e)=(\u221a(q_(i,e)))/(1+q_(i,e))"),
    ],
)
def test_formulas_bind_as_statements_do(statement: str, shown: str) -> None:
    """Ambient ranks are left out; brackets stand where they have to."""
    ranks = "rank i: query; rank j: key; rank e: feature"
    reads = "in q[b, i, e]; in s[b, i, j]; in v[b, j, e]"
    made = formulas(dsl.compile_text(f"attention a over b {{ {ranks}; {reads}; {statement}; out o }}"))
    assert plain(ET.fromstring(made)) == shown


def plain(x: ET.Element) -> str:
    """A formula on one line."""
    parts = [plain(child) for child in x]
    match x.tag:
        case "msub" | "munder":
            return f"{parts[0] if x.tag == 'msub' else f'({parts[0]})'}_({parts[1]})"
        case "msup":
            return f"{parts[0]}^({parts[1]})"
        case "mfrac":
            return f"({parts[0]})/({parts[1]})"
        case "msqrt":
            return f"\u221a({''.join(parts)})"
        case "mspace":
            return " "
    return (x.text or "") + "".join(parts)


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
