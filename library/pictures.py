"""The two pictures of the README, drawn from what the compiler says: what becomes of a spec, and the tiles that kernels visit.

python -m einfuse.library.pictures docs
"""

from __future__ import annotations

import argparse
import html
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import einfuse

DRAWING = re.compile(r"<svg.*?</svg>", re.DOTALL)
EXAMPLE = "sliding_window"
SHOWN = ("causal", "sliding_window", "streaming", "chunked", "neighbourhood_2d")
LINE, HEAD, PAD = 14, 56, 12
"""Pixels from line to line of code, down to the first, and around what stands in a box."""
LONGEST = 104
FOUND = "derived by algebra and proven, for a normaliser that no list holds as well"
MADE = "Triton and C++, checked against a float64 oracle; this is the loop of {} lines"
STYLE = """<style>
text { font: 9.6px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1f2328; white-space: pre }
.title { font: bold 13px sans-serif; fill: #2f6db3 } .said { font: 11.5px sans-serif; fill: #59636e } .box { fill: #f6f8fa; stroke: #d1d9e0 }
.key { fill: #2f6db3; font-weight: bold } .arrow { stroke: #2f6db3; stroke-width: 2; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .said { fill: #9198a1 } .box { fill: #161b22; stroke: #3d444d }
  .title, .key { fill: #79b8ff } .arrow { stroke: #79b8ff }
}
</style>"""


def overview(name: str = EXAMPLE) -> str:
    """What becomes of a spec: its text, its one pass, the tiles of its mask, the loop of its kernel."""
    attention = einfuse.compile(name)
    (spec,) = (s for s in einfuse.list_specs() if s.name == name)
    (report,) = attention.passes()
    text = spec.text[spec.text.index("attention ") :].rstrip().split("\n")
    fold = _block(attention.ir("online_fuse"), "fold ")
    kernel = attention.source("triton")
    loop = _block(kernel, "for j_lo in tl.range", mark="# full")
    left, right, gap = 402, 626, 36  # widths of the columns and the space between boxes
    top, low = (HEAD + LINE * max(map(len, rows)) for rows in ((text, fold), (loop,)))
    x, y, side = left + gap, top + gap, low - HEAD
    drawn, live = _map(attention, (left - side) / 2, y + HEAD - PAD, side)
    parts = [
        STYLE,
        _panel(0, 0, left, top, "The text", "attention as the paper writes it, in index notation", text),
        _panel(x, 0, right, top, f"{report.before} passes over the keys -> {report.after}", FOUND, fold),
        _panel(0, y, left, low, "Dead tiles are skipped", f"the mask becomes bounds of loops; {live} are live here"),
        drawn,
        _panel(x, y, right, low, "Kernels, and their derivatives", MADE.format(len(kernel.splitlines())), loop),
        f'<path class="arrow" d="M{left + 4} 80h{gap - 8}m-6 -4l6 4l-6 4"/>',
        *(f'<path class="arrow" d="M{at:g} {top + 4}v{gap - 8}m-4 -6l4 6l4 -6"/>' for at in (left / 2, x + right / 2)),
    ]
    words = f"{name}: its text, the one pass that it becomes, the tiles that are live, and the loop of its kernel"
    return _svg(x + right, y + low, words, parts)


def tiles(names: Iterable[str] = SHOWN) -> str:
    """A row of masks, each with what its kernel visits and how often it reads the keys."""
    side, gap = 128, 24
    parts = []
    for n, name in enumerate(names):
        attention = einfuse.compile(name)
        (report,) = attention.passes()
        at = n * (side + gap)
        drawn, live = _map(attention, at, 24, side)
        said = (f"{live} live", f"{report.before} passes -> {report.after}")
        lines = [f'<text x="{at}" y="{side + 46 + 18 * k}">{html.escape(x)}</text>' for k, x in enumerate(said)]
        parts += [f'<text x="{at}" y="14" font-weight="bold">{name}</text>', drawn, *lines]
    width = len(parts) // 4 * (side + gap) - gap
    style = 'font-family="sans-serif" font-size="12" fill="#6e7781"'
    return _svg(width, side + 74, "Tiles that kernels visit", parts, style)


def _map(attention: einfuse.Attention, x: float, y: float, side: float) -> tuple[str, str]:
    """The tiles of a mask at a place, and how many of them are live."""
    drawing = DRAWING.search(attention._repr_mimebundle_()["text/html"])
    assert drawing is not None, f"{attention.name} has a mask"
    said = re.search(r'aria-label="([^"]*) live', drawing[0])
    assert said is not None
    place = f'x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}"'
    return re.sub(r'width="\d+" height="\d+"', place, drawing[0], count=1), said[1]


def _block(text: str, start: str, mark: str = "") -> list[str]:
    """The first line that starts so and holds the mark, with the lines indented below it; long ones are cut."""
    lines = text.split("\n")
    at = next(n for n, x in enumerate(lines) if x.strip().startswith(start) and mark in x)
    depth = len(lines[at]) - len(lines[at].lstrip())
    end = next(n for n in range(at + 1, len(lines)) if lines[n].strip() and len(lines[n]) - len(lines[n].lstrip()) <= depth)
    shown = textwrap.dedent("\n".join(lines[at : end + (lines[end].strip() == "}")])).rstrip().split("\n")
    return [x if len(x) <= LONGEST else x[: LONGEST - 4] + " ..." for x in shown]


KEY = re.compile(r"\b(attention|over|rank|query|key|feature|in|out|where|fold|state|carry|sum|max|for|tl|and)\b")


def _panel(x: float, y: float, width: float, height: float, title: str, said: str, code: Sequence[str] = ()) -> str:
    out = [f'<rect class="box" x="{x + 0.5:g}" y="{y + 0.5:g}" width="{width - 1:g}" height="{height - 1:g}" rx="6"/>']
    out.append(f'<text class="title" x="{x + PAD}" y="{y + 19}">{html.escape(title)}</text>')
    out.append(f'<text class="said" x="{x + PAD}" y="{y + 35}">{html.escape(said)}</text>')
    for n, line in enumerate(code):
        words = KEY.sub(r'<tspan class="key">\1</tspan>', html.escape(line, quote=False))
        out.append(f'<text x="{x + PAD}" y="{y + HEAD + LINE * n}" xml:space="preserve">{words}</text>')
    return "\n".join(out)


def _svg(width: float, height: float, words: str, parts: Iterable[str], style: str = "") -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}" role="img" '
    return f'{head}aria-label="{html.escape(words)}"{" " + style if style else ""}>\n' + "\n".join(parts) + "\n</svg>\n"


PICTURES = {"overview.svg": overview, "tiles.svg": tiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, drawn in PICTURES.items():
        (folder / name).write_text(drawn(), encoding="utf-8")


if __name__ == "__main__":
    main()
