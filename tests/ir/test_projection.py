"""The shadow of a mask on a rank is just where the mask holds for some row, or there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from mask_oracle import evaluate, mask

from einfuse.ir import Expr
from einfuse.ir.expr import TRUE, indices
from einfuse.ir.projection import diagonal, projection
from einfuse.ir.text import parse
from einfuse.testing import masks

ENV: dict[str, Any] = {
    "B": 2,
    "H": 2,
    "Nq": 9,
    "Nk": 11,
    "prefix": np.array([0, 5]),
    "doc": np.array([[0, 0, 1, 1, 1, 2, 2, 4, 4, 5, 5], [1] * 11]),
    "pad": np.array([[True] * 6 + [False] * 5, [False, True] * 5 + [False]]),
}
CASCADE = parse("""cascade c over b, h {
  rank b: batch = B rank h: head = H rank i: query = Nq rank j: key = Nk
  in prefix[B]: int in doc[B, N]: int in pad[B, Nk]: bool param window: int
  o[i] = 1
  out o
}""")


def check(e: Expr, rank: str = "i", **more: int) -> Expr | None:
    """The shadow, compared with the mask point by point."""
    axes = {r: n for n, r in enumerate("bhij")}
    extent = dict(zip("bhij", ("B", "H", "Nq", "Nk"), strict=True))
    shadow = projection(CASCADE, e, rank)
    if shadow is None:
        return None
    assert rank not in indices(shadow)
    at = {r: np.arange(ENV[extent[r]]).reshape([-1 if r == x else 1 for x in axes]) for r in axes}
    points = np.broadcast_to(evaluate(e, ENV | at | more), [ENV[n] for n in extent.values()])
    some = points.any(axes[rank], keepdims=True)
    found = evaluate(shadow, ENV | {r: x for r, x in at.items() if r != rank} | more)
    assert np.array_equal(some, np.broadcast_to(found, some.shape)), shadow
    return shadow


@pytest.mark.parametrize(
    "text",
    [
        "j <= i",
        "j < i - 2",
        "i - j < w and j <= i",
        "abs(i - j) <= w",
        "i + j < 7 and i + j > w",
        "j <= i and i - j < w or j < 2",
        "pad[b, j] and j <= i",
        "i < prefix[b]",
        "j % 3 == 0 and i // 1 == j",
        "i == j",
        "j <= i and j >= i + 1",
        "h > 0",
        "i // 4 == j // 4",
        "j // 3 + 1 < i // 2 and i // 2 < 3",
        "j // 8 == i // 8 and j % 4 == 1",
    ],
)
@pytest.mark.parametrize("rank", ["i", "j"])
def test_shadows_are_exact(text: str, rank: str) -> None:
    for w in (-1, 0, 1, 4):
        shadow = check(mask(text.replace("w", str(w))), rank)
        assert shadow is not None or (rank == "j" and any(t in text for t in ("pad", "%", "//")))


@pytest.mark.parametrize(
    "text", ["j <= 2 * i", "i // 2 == j and i > 1", "doc[b, i] == doc[b, j]", "(i - j) % 3 == 0", "sin(i) < j"]
)
def test_what_has_no_exact_shadow_has_none(text: str) -> None:
    assert check(mask(text)) is None


@given(masks(2))
@settings(max_examples=200)
def test_drawn_masks_have_exact_shadows_or_none(text: str) -> None:
    e = mask(text)
    for rank in "ij":
        check(e, rank, window=4)


@pytest.mark.parametrize(
    ("text", "own"),
    [
        ("doc[b, i] == doc[b, j]", "true"),
        ("doc[b, i] == doc[b, j] and j <= i", "true"),
        ("(i // 3) % 2 == (j // 3) % 2 and pad[b, j]", "pad[b, j]"),
        ("(i - j) % 3 == 0", None),
        ("doc[b, i] == doc[b, j] and j < i", None),
    ],
)
def test_every_token_of_a_group_sees_itself(text: str, own: str | None) -> None:
    found = diagonal(mask(text), "i", "j")
    assert found == (None if own is None else TRUE if own == "true" else mask(own))
    at = np.arange(9)
    if found is not None:
        here, there = (np.broadcast_to(evaluate(e, ENV | {"b": 0, "i": at, "j": at}), at.shape) for e in (mask(text), found))
        assert np.array_equal(here, there)
