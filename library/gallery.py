"""Writes the pages of the documentation site: what stands in docs/, and a page for every spec. `make docs` runs it, then mkdocs.

    python -m einfuse.library.gallery build/pages

A page of a spec shows its text and formulas, its passes and the tiles of its mask, as a notebook does, and what its kernels cost. What pages
link to is copied beside them, so that the site has no link that leads out of it to nowhere.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import einfuse
from einfuse.codegen.cost import DEVICES, Cost, Device
from einfuse.library.formulas import formulas
from einfuse.library.pictures import DRAWING
from einfuse.library.table import built_on
from einfuse.runtime.sizes import Shape
from einfuse.runtime.texts import costs

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "library/README.md", "docs/*.md")
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")
ARXIV = re.compile(r"arXiv[ :](\d{4}\.\d{4,5})")
LENGTH = 4096


def site(out: Path, specs: Iterable[einfuse.SpecInfo], root: Path = ROOT) -> None:
    """Writes all pages below ``out``, which is made anew."""
    shutil.rmtree(out, ignore_errors=True)
    for pattern in PAGES:
        for path in sorted(root.glob(pattern)):
            _staged(path.relative_to(root), root, out)
    families: dict[str, list[str]] = defaultdict(list)
    users = _users()
    for spec in specs:
        text, card = page(spec, users[spec.name])
        _write(out / "gallery" / f"{spec.name}.md", text)
        families[spec.family].append(card)
    _write(out / "gallery" / "index.md", index(families))


def page(spec: einfuse.SpecInfo, users: Iterable[str]) -> tuple[str, str]:
    """The page of a spec, and its card for the index."""
    attention = einfuse.compile(spec.name)
    shown = attention._repr_mimebundle_()["text/html"].partition("\n")[2]  # without its title
    doc = ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", _plain(attention.cascade.doc.strip()))
    named = ", ".join(f"`{x}`" for x in users)
    parts = [
        f"# {spec.name}\n\n{doc}\n",
        f"```attn\n{spec.text.rstrip()}\n```\n",
        f"## Formulas\n\n<div>{formulas(attention.cascade)}</div>\n",
        f"## What becomes of it\n\n{shown}\n",
        _cost(attention),
        f"## Built on it\n\n{named}\n" if named else "",
        f"`einfuse verify {spec.name}` checks it, `einfuse explain {spec.name}` says what it costs. It is one of the family *{spec.family}*.\n",
    ]
    drawing = DRAWING.search(shown)
    picture = f"[{_small(drawing[0])}]({spec.name}.md)<br>" if drawing else ""
    return "\n".join(x for x in parts if x), f"| {picture}[{spec.name}]({spec.name}.md) | {_plain(spec.paper)} |"


def _cost(attention: einfuse.Attention) -> str:
    """The cost of the forward kernels as a table; empty where there is none, or none is counted."""
    try:
        found = costs(attention.cascade, Shape(1, 16, LENGTH, LENGTH, (64, 64), 1))
    except einfuse.SpecError:
        return ""
    counted = [(x.name, x.cost) for x in found if x.cost is not None]
    if not counted:
        return ""
    head = ["kernel", "products", "memory", *(d.name for d in DEVICES.values())]
    rows = [
        [f"`{name}`", f"{c.work.products / 1e9:.3g} GF", f"{c.bytes / 1e6:.3g} MB", *(_bound(c, d) for d in DEVICES.values())]
        for name, c in counted
    ]
    lines = ["| " + " | ".join(r) + " |" for r in (head, ["---"] * len(head), *rows)]
    said = f"""For 16 heads of {LENGTH} queries and keys, 64 wide, in 16 bits: the least time that the named resource allows at its peak
rate, not a measurement."""
    return "\n".join(["## Cost\n", said, "", *lines, ""])


def _bound(found: Cost, device: Device) -> str:
    times = found.times(device)
    worst = max(times, key=lambda r: times[r])
    return f"{1e6 * times[worst]:.3g} us, {worst}"


def index(families: dict[str, list[str]]) -> str:
    """Every spec with the tiles of its mask, family by family."""
    parts = [
        "# Gallery\n\nEvery spec of the library. Light tiles of a mask are partly live, dark ones wholly, of 1024 queries and keys.\n"
    ]
    for family in sorted(families):
        parts.append("\n".join([f"## {family.capitalize()}\n", "| spec | paper |", "|---|---|", *families[family], ""]))
    return "\n".join(parts)


def _plain(text: str) -> str:
    """Words and formulas as they are, whatever markdown or HTML would make of their signs."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(text, quote=False))


def _small(svg: str) -> str:
    return re.sub(
        r'width="(\d+)" height="(\d+)"', lambda m: f'width="72" height="{round(72 * int(m[2]) / int(m[1]))}"', svg, count=1
    )


def _users() -> dict[str, list[str]]:
    out: dict[str, list[str]] = defaultdict(list)
    for name, specs in built_on().items():
        for spec in specs:
            out[spec].append(name)
    return out


def _staged(path: Path, root: Path, out: Path) -> None:
    """Copies a page, and what it links to as far as that is no page. A folder becomes a page that lists its files."""
    text = (root / path).read_text(encoding="utf-8")

    def link(m: re.Match[str]) -> str:
        target = Path(os.path.normpath(path.parent / m[1]))
        if (root / target).is_dir():
            _listed(target, root, out)
            return f"{m[1].rstrip('/')}/index.md"
        if (root / target).is_file() and target.suffix != ".md":
            _copied(target, root, out)
        return m[1]

    _write(out / path, LINK.sub(link, text))


def _listed(folder: Path, root: Path, out: Path) -> None:
    files = sorted(p.name for p in (root / folder).iterdir() if p.is_file())
    for name in files:
        _copied(folder / name, root, out)
    _write(out / folder / "index.md", f"# {folder}\n\n" + "\n".join(f"- [{name}]({name})" for name in files) + "\n")


def _copied(path: Path, root: Path, out: Path) -> None:
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / path, out / path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    site(parser.parse_args().out, einfuse.list_specs())


if __name__ == "__main__":
    main()
