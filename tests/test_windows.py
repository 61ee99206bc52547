"""Windows as a rank of their own and windows as a mask: the same results, and in tiles that follow them the same work."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.ir.passes import pipeline
from einfuse.runtime.live import forward_tiles

OWN = """attention own(area: int = 49) over b, w, h {
  rank i: query = area; rank j: key = area; rank d, e: feature
  in q[b, w, h, i, d]
  in k[b, w, h, j, d]
  in v[b, w, h, j, e]
  s = sum[d](q * k) / sqrt(D)
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""
MASK = """attention masked(area: int = 49) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where i // area == j // area
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def sequence(x: torch.Tensor) -> torch.Tensor:
    """[B, W, H, area, D] -> [B, H, W * area, D]."""
    return x.transpose(1, 2).flatten(2, 3)


@pytest.mark.parametrize("area", [16, 49, 64, 256])
def test_a_rank_of_windows_and_a_mask_of_windows_are_one_attention(area: int) -> None:
    q, k, v = (torch.randn(2, 5, 3, area, 8, requires_grad=True) for _ in range(3))
    own = einfuse.compile(OWN, area=area, backend="torch")(q, k, v)
    masked = einfuse.compile(MASK, backend="torch")(*map(sequence, (q, k, v)), area=area)
    assert isinstance(own, torch.Tensor)
    assert isinstance(masked, torch.Tensor)
    torch.testing.assert_close(sequence(own), masked, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(o.sin().sum(), (q, k, v)) for o in (sequence(own), masked)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_windows_as_large_as_tiles_take_as_many_tiles_either_way() -> None:
    """16 windows of 256 tokens in the tiles of 256 x 256 of the torch back end: one tile for each window."""
    q = torch.randn(1, 16, 1, 256, 2)
    masked = einfuse.compile(MASK, area=256, backend="torch")
    own = einfuse.compile(OWN, area=256, backend="torch")
    ((_, over_sequence),) = forward_tiles(masked, dict.fromkeys("qkv", sequence(q)))
    ((_, of_a_window),) = forward_tiles(own, dict.fromkeys("qkv", q))
    assert (over_sequence.kind > 0).sum() == 16 * (of_a_window.kind > 0).sum() == 16
    assert (over_sequence.kind == 2).sum() == 16  # and none needs its mask


def test_the_shifted_windows_of_an_image_are_those_of_the_rolled_one() -> None:
    """Swin's mask on tokens row by row, and its windows cut out of the rolled image with the regions as a mask."""
    side, window, shift = 12, 4, 2
    q, k, v = (torch.randn(1, 2, side * side, 8) for _ in range(3))
    masked = einfuse.compile("swin", columns=side, window=window, shift=shift, backend="torch")(q, k, v)

    def cut(x: torch.Tensor) -> torch.Tensor:
        image = x.reshape(1, 2, side, side, 8).roll((-shift, -shift), (2, 3))
        cells: torch.Tensor = image.unflatten(2, (-1, window)).unflatten(4, (-1, window))
        return cells.permute(0, 2, 4, 1, 3, 5, 6).flatten(1, 2).flatten(3, 4)

    cells = side // window
    own = einfuse.compile(
        "swin_window", side=window, area=window**2, down=cells, across=cells, shift=shift, shifted=True, backend="torch"
    )(cut(q), cut(k), cut(v), torch.zeros(2, 2 * window - 1, 2 * window - 1))
    assert isinstance(masked, torch.Tensor)
    assert isinstance(own, torch.Tensor)
    torch.testing.assert_close(own, cut(masked), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("area", "block", "tile", "step"),
    [(49, 48, 64, 64), (49, 128, 64, 64), (7, 48, 8, 8), (49, 32, 32, 64), (196, 48, 48, 128)],
)
def test_a_window_that_fits_is_one_tile_and_one_step(area: int, block: int, tile: int, step: int) -> None:
    scheduled = pipeline.run(einfuse.compile(OWN, area=area).cascade, block, 128)
    assert scheduled.tile == (("i", tile),)
    assert [getattr(x, "step", step) for x in scheduled.body] == [step] * len(scheduled.body)
