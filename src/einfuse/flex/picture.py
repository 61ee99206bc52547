"""Blocks as text."""

from __future__ import annotations

import itertools

import torch

FULL, SOME, NONE = "\u2588", "\u2591", " "


def text(dense: torch.Tensor, grid: tuple[int, int], limit: int) -> str:
    """Every head of ``dense[B, H, rows, columns]`` in cells of several blocks, so that ``grid`` rows and columns are enough."""
    *ambient, rows, columns = dense.shape
    height, width = (max(1, -(-n // g)) for n, g in zip((rows, columns), grid, strict=True))
    out = []
    for n, at in enumerate(itertools.product(*map(range, ambient))):
        if n == limit:
            out += ["...", "to_string(limit=N) shows more, mask[batch, head] one"]
            break
        lines = [
            "".join(_cell(dense[at][r : r + height, c : c + width]) * 2 for c in range(0, columns, width))
            for r in range(0, rows, height)
        ]
        out.append(f"{at}\n" + "\n".join(lines) + "\n")
    return "\n".join(out)


def _cell(part: torch.Tensor) -> str:
    share = float(part.float().mean())
    return FULL if share == 1 else NONE if share == 0 else SOME
