"""Tiles and steps that suit a mask: narrower ones where that lowers work, the back end's own choice everywhere else."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.runtime import tiles
from einfuse.runtime.live import forward_tiles

GPU = ((128, 64), (128, 32), (64, 64), (64, 32), (16, 16))
CPU = ((48, 128), (48, 64), (48, 32))
LONG = {"B": 1, "H": 2, "Hk": 2, "Nq": 8192, "Nk": 8192, "D": 64, "E": 64}


def taken(name: str, ladder: tuple[tuple[int, int], ...], sizes: dict[str, int] = LONG, **numbers: int) -> tuple[int, int]:
    cascade = einfuse.compile(name).cascade
    known = {t.name: t.default for t in cascade.inputs if t.param} | numbers
    return ladder[tiles.first(cascade, ladder, known, sizes, False)]  # type: ignore[arg-type]  # every parameter has a default


@pytest.mark.parametrize("name", ["full", "causal", "chunked", "prefix", "document"])
@pytest.mark.parametrize("ladder", [GPU, CPU])
def test_masks_with_long_rows_take_the_widest_tiles(name: str, ladder: tuple[tuple[int, int], ...]) -> None:
    assert taken(name, ladder) == ladder[0]


@pytest.mark.parametrize(("window", "gpu", "cpu"), [(64, (64, 64), (48, 32)), (4096, GPU[0], CPU[0])])
def test_a_window_narrower_than_the_tile_takes_narrower_tiles(window: int, gpu: tuple[int, int], cpu: tuple[int, int]) -> None:
    assert taken("sliding_window", GPU, window=window) == gpu
    assert taken("sliding_window", CPU, window=window) == cpu


def test_short_sequences_keep_the_first_tiling() -> None:
    short = LONG | {"Nq": 512, "Nk": 512}
    assert taken("sliding_window", GPU, short, window=64) == GPU[0]


def test_the_work_of_a_row_is_what_its_tiles_visit() -> None:
    """A causal window of 64 in tiles of 128 visits three blocks of 64, one of them never alive for all rows."""
    found = tiles.loops(einfuse.compile("sliding_window").cascade, 128, 64, False)
    assert found is not None
    visited = 3 * 64 * (128 + tiles.LOADED + tiles.CARRIED * 2)
    assert found.row(LONG | {"window": 64}, 8192) == pytest.approx(tiles.MASKED * visited / 128, rel=0.05)
    assert tiles.loops(einfuse.compile("document").cascade, 128, 64, False) is None


def test_fewer_pairs_are_visited() -> None:
    """What the tiles of a call cover, of the back end that has the tiles of a GPU."""
    attention = einfuse.compile("sliding_window", backend="triton")
    given = {x: torch.zeros(1, 1, 2048, 128, dtype=torch.bfloat16) for x in "qkv"}

    def visited(window: int) -> tuple[int, int]:
        ((fold, found),) = forward_tiles(attention, {**given, "window": window})
        block = -(-2048 // found.kind.shape[-2])
        return block, int((found.kind > 0).sum()) * block * fold.step

    (narrow, fewer), (wide, more) = visited(64), visited(256)
    assert (narrow, wide) == (64, 128)
    assert fewer <= 2048 * (64 + 64)
    assert more >= 2048 * 256
