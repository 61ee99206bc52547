"""The command tiles: which tiles of a mask are live, as text and as a picture."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from einfuse._cli import inputs, screen
from einfuse._cli.tilemap import Mapped, mapped
from einfuse.ir import EinfuseError
from einfuse.ir.text import show_expr

MARKS = ("\u00b7", "\u2592", "\u2588")
"""Empty, partial, full."""
WIDEST = 64
"""The most tiles in a row that are drawn one by one; of more, some are drawn as one."""


def tiles(args: argparse.Namespace) -> int:
    cascade = inputs.cascade(args.spec, args)
    found = mapped(cascade, args.shape, args.tile, lambda: inputs.attention(args.spec, args))
    if args.png is not None:
        picture(found, args.png, args.limit)
    if args.json:
        screen.report(as_json(found))
        return 0
    console = screen.out()
    console.print(f"{found.name}: tiles of {found.tile[0]} x {found.tile[1]}, {100 * found.tiles.live_fraction:.4g} % live")
    console.print(f"  where {'everything' if found.mask is None else show_expr(found.mask)}", soft_wrap=True)
    for line in (*bounds(found), *([found.walk] if found.walk else [])):
        console.print(f"  {line}", soft_wrap=True)
    for at in points(found, args.limit):
        drawing(found, at)
    return 0


def bounds(found: Mapped) -> list[str]:
    """What a row of tiles visits, in words."""
    return found.bounds or ["no closed form: a table of live tiles is made at launch, from the mask's text"]


def points(found: Mapped, limit: int) -> list[tuple[int, ...]]:
    """The first points of the ranks that the mask depends on."""
    return list(itertools.islice(itertools.product(*map(range, found.tiles.kind.shape[:-2])), limit))


def label(found: Mapped, at: tuple[int, ...]) -> str:
    return ", ".join(f"{r} = {k}" for r, k in zip(found.tiles.ranks, at, strict=True))


def drawing(found: Mapped, at: tuple[int, ...]) -> None:
    """One map: a line for a row of tiles, with its loop bounds as numbers."""
    console = screen.out()
    kind = found.tiles.kind[at]
    height, width = (-(-n // WIDEST) for n in kind.shape)
    if at:
        console.print(f"\n{label(found, at)}")
    for r in range(0, kind.shape[0], height):
        cells = [kind[r : r + height, c : c + width] for c in range(0, kind.shape[1], width)]
        line = "".join(MARKS[1 if cell.min() != cell.max() else int(cell.max())] for cell in cells)
        spans = " ".join(f"[{lo}, {hi})" for lo, hi in found.spans(at, r)) if found.ranges else ""
        console.print(f"{r * found.tile[0]:>8} {line} {spans}".rstrip(), soft_wrap=True)


def as_json(found: Mapped) -> screen.Json:
    rows = found.tiles.kind.shape[-2]
    spans: list[screen.Json] = []
    if found.ranges:
        every = itertools.product(*map(range, found.tiles.kind.shape[:-2]))
        spans = [[[list(s) for s in found.spans(at, r)] for r in range(rows)] for at in every]
    return {
        "name": found.name,
        "mask": None if found.mask is None else show_expr(found.mask),
        "tile": list(found.tile),
        "ranks": list(found.tiles.ranks),
        "live_fraction": found.tiles.live_fraction,
        "bounds": list(found.bounds),
        "tabulated": not found.ranges,
        "walk": found.walk,
        "spans": spans,
        "kind": found.tiles.kind.tolist(),
    }


def picture(found: Mapped, file: Path, limit: int) -> None:
    """The maps side by side, with the loop bounds below. Raises EinfuseError where matplotlib is missing."""
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
    except ImportError:
        raise EinfuseError("pictures need matplotlib: pip install 'einfuse[plots]'") from None
    shown = points(found, limit)
    figure = Figure(figsize=(4.5 * len(shown) + 1, 6), layout="constrained")
    colours = ListedColormap(["#f4f4f2", "#9ec5e8", "#2f6db3"])
    for at, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
        kind = found.tiles.kind[at]
        extent = (0, kind.shape[1] * found.tile[1], kind.shape[0] * found.tile[0], 0)
        axes.imshow(kind, cmap=colours, vmin=0, vmax=2, extent=extent, interpolation="nearest", aspect="auto")
        axes.set(xlabel=found.columns, ylabel=found.rows, title=label(found, at))
    figure.suptitle(f"{found.name}: {100 * found.tiles.live_fraction:.4g} % of the tiles live (light: partial, dark: full)")
    figure.supxlabel("\n".join(bounds(found)), fontsize=8, family="monospace", wrap=True)
    figure.savefig(file, dpi=120)
