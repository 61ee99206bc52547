"""A mask over an image, written in rows and columns: two discs and a class token, and a picture of what is seen.

The tokens of an image come row by row; `i // width` and `i % width` are the coordinates, and masks are formulas of them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from rich.console import Console

import einfuse

SPEC = '''
def row(n, width) = (n - 1) // width
def column(n, width) = (n - 1) % width
def disc[i, j](width, radius) {
  y = row(i, width) - row(j, width)
  x = column(i, width) - column(j, width)
  return y * y + x * x <= radius * radius
}

"""Discs in an image (no paper): near heads see a small disc, far heads a large one; token 0 sees and is seen by all."""
attention discs(width: int = 16, near: int = 2, far: int = 5) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where i == 0 or j == 0 or disc[i, j](width, near if h < H // 2 else far)
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
'''


def seen(attention: einfuse.Attention, width: int, height: int, at: tuple[int, int]) -> torch.Tensor:
    """What the token at (row, column) sees of every head, [heads, height, width].

    Measured, not computed: with equal scores the weights say which keys exist, and a unit vector for every key reads them off.
    """
    tokens, heads = 1 + width * height, 4
    zero = torch.zeros(1, heads, tokens, 8)
    out = attention(zero, zero, torch.eye(tokens).expand(1, heads, -1, -1), width=width)
    assert isinstance(out, torch.Tensor), "the spec has one output"
    return (out[0, :, 1 + at[0] * width + at[1], 1:] > 0).reshape(heads, height, width)


def main(width: int = 16, height: int = 12, png: Path | None = None, backend: str | None = None) -> torch.Tensor:
    console = Console(highlight=False, markup=False)
    attention = einfuse.compile(SPEC, backend=backend)
    at = (height // 2, width // 3)
    found = seen(attention, width, height, at)
    for name, head in (("a near head", 0), ("a far head", 3)):
        console.print(f"\n{name}, from row {at[0]}, column {at[1]}: {int(found[head].sum())} of {width * height} tokens")
        for y, line in enumerate(found[head].tolist()):
            console.print(" ".join("@" if (y, x) == at else "o" if there else "." for x, there in enumerate(line)))
    if png is not None:
        picture(png, found)
    return found


def picture(path: Path, found: torch.Tensor) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3 * len(found), 2.6))
    for n, (axis, head) in enumerate(zip(axes, found, strict=True)):
        axis.imshow(head.float().tolist(), cmap="Blues", vmin=0, vmax=1)
        axis.set(title=f"head {n}", xticks=[], yticks=[])
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--png", type=Path, help="draw what every head sees to this file")
    main(png=options.parse_args().png)
    sys.exit(0)
