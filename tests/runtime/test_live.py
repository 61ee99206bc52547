"""What a benchmark says of masks: the tiles that are left, and the attention without its mask."""

from __future__ import annotations

import pytest
import torch
from narrowed import three

import einfuse
from einfuse.runtime.bench import bench_inputs, interleaved
from einfuse.runtime.live import live_share, without_masks


def qkv(n: int) -> dict[str, torch.Tensor]:
    return {x: torch.randn(1, 2, n, 4) for x in "qkv"}


def test_live_tiles_are_those_that_hold_a_pair() -> None:
    """Counted one by one, in the tiles of 256 x 256 of the torch back end."""
    n, t = 1500, torch.arange(1500)
    for name, given, pairs in (
        ("causal", {}, t <= t[:, None]),
        ("sliding_window", {"window": 100}, (t <= t[:, None]) & (t[:, None] - t < 100)),
        ("padding", {"pad": (t < 700)[None]}, (t < 700).expand(n, n)),
        ("full", {}, torch.ones(n, n, dtype=torch.bool)),
    ):
        blocks = torch.nn.functional.pad(pairs, (0, 36, 0, 36)).reshape(6, 256, 6, 256).any(3).any(1)
        found = live_share(einfuse.compile(name, backend="torch"), {**qkv(n), **given})
        assert found == pytest.approx(blocks.float().mean().item()), name


def test_live_tiles_of_several_kernels_and_of_a_scan() -> None:
    two = einfuse.compile("linformer", backend="torch")
    inputs = bench_inputs(two, torch.float32, einfuse.BenchShape(1, 2, 40, 8))
    assert live_share(two, inputs) == 1.0
    scan = einfuse.compile("retention", backend="torch")
    assert live_share(scan, bench_inputs(scan, torch.float32, einfuse.BenchShape(1, 2, 40, 8))) == 1.0


def test_without_masks_every_point_is_there() -> None:
    whole = without_masks(einfuse.compile("sliding_window", backend="torch"))
    inputs = qkv(9)
    assert whole is not None
    found = whole(**inputs, window=2)
    torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(*three(inputs.values())))
    assert without_masks(einfuse.compile("full")) is None


def test_a_bench_row_says_what_is_left_of_the_tiles() -> None:
    masked, full = einfuse.bench(
        [einfuse.compile(n, backend="torch") for n in ("sliding_window", "full")],
        shapes=[einfuse.BenchShape(1, 1, 600, 8)],
        repeats=2,
    )
    assert masked.live == pytest.approx(5 / 9)
    assert full.live == 1.0  # tiles of 256, a window of as many
    assert masked.per_tile is not None
    assert masked.per_tile > 0
    assert full.per_tile is None


def test_runs_are_timed_in_turns() -> None:
    done: list[int] = []
    found = interleaved([lambda k=k: done.append(k) for k in range(3)], 2)  # type: ignore[misc]
    assert done == [0, 0, 1, 1, 2, 2] + [0, 1, 2] * 2
    assert len(found) == 2
