"""Kernels that walk a mask by lists: where they are taken, what they give, and how much they visit."""

from __future__ import annotations

import math

import pytest
import torch

import einfuse
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName
from einfuse.runtime.live import live_share, visited
from einfuse.runtime.walks import FEWEST


def images(n: int, heads: int = 2, keys: int | None = None, width: int = 4) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    shapes = [(2, heads, n, width), *[(2, keys or heads, n, width)] * 2]
    return [torch.randn(*s, generator=generator).transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for s in shapes]


def shapes(attention: Attention) -> list[tuple[int, int, int]]:
    return [x.shape for x in attention.program.walks.chosen.values() if x is not None]


def agrees(attention: Attention, given: list[torch.Tensor], gradients: bool = True) -> None:
    found, truth = attention(*given), attention.reference(*given)
    assert isinstance(found, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    if gradients:
        both = [torch.autograd.grad(o.sin().sum(), given) for o in (found.double(), truth)]
        torch.testing.assert_close(*both, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_values_and_gradients(backend: BackendName) -> None:
    """Windows that a shift cuts, an image whose last row is short, and heads that share keys."""
    attention = einfuse.compile("swin", columns=15, window=5, shift=2, backend=backend)
    agrees(attention, images(217, heads=4, keys=2))
    assert set(shapes(attention)) == {(9, 25, 25)}
    assert len(shapes(attention)) >= 3  # forward, rows, columns


@pytest.mark.slow  # a kernel for each of three cascades, in Triton's interpreter
def test_values_and_gradients_of_neighbourhoods_in_triton() -> None:
    attention = einfuse.compile("neighbourhood_2d", columns=15, window=5, backend="triton")
    agrees(attention, images(225))
    assert len(shapes(attention)) == 3


def test_one_kernel_serves_images_of_any_size() -> None:
    (text,) = (x.text for x in einfuse.list_specs() if x.name == "swin")
    attention = einfuse.compile(text.replace("attention swin", "attention swin_of_any_size"), columns=14, backend="torch")
    with torch.no_grad():
        for n in (196, 392, 390):
            agrees(attention, images(n), False)
        attention(*images(392), columns=28)
    assert len(shapes(attention)) == 4
    assert len(attention.program.built) == 1


def test_a_rank_of_windows_and_a_mask_of_windows_are_as_much_work() -> None:
    """56 x 56 tokens in windows of 7 x 7: the pairs that are visited are those of 64 windows, whatever the shift."""
    for shift in (0, 3):
        attention = einfuse.compile("swin", columns=56, shift=shift, backend="cpu")
        given = dict.fromkeys("qkv", torch.zeros(1, 1, 3136, 8))
        (found,) = visited(attention, given)
        assert found.chosen is not None
        assert math.prod(found.chosen.shape) == 64 * 49 * 49
        assert live_share(attention, given) == 1 / 64
        assert found.tiles.kind.shape[0] == 64 or shift == 0


def test_neighbourhoods_visit_fewer_pairs() -> None:
    attention = einfuse.compile("neighbourhood_2d", columns=56, backend="cpu")
    given = dict.fromkeys("qkv", torch.zeros(1, 1, 3136, 8))
    (found,) = visited(attention, given)
    assert found.chosen is not None
    assert found.chosen.groups.work < 0.5 * found.chosen.before
    assert live_share(attention, given) < 0.05


@pytest.mark.parametrize("name", ["causal", "sliding_window", "chunked", "document"])
def test_masks_that_tiles_follow_keep_tiles(name: str) -> None:
    attention = einfuse.compile(name, backend="cpu")
    given = {t.name: torch.zeros(1, 1, 2048, 8) for t in attention.cascade.inputs if t.dtype == "float" and not t.param}
    given |= {t.name: torch.zeros(1, 2048, dtype=torch.int64) for t in attention.cascade.inputs if t.name == "doc"}
    (found,) = visited(attention, given)
    assert found.chosen is None


def test_short_sequences_keep_tiles() -> None:
    attention = einfuse.compile("swin", columns=7, window=3, shift=0, backend="torch")
    agrees(attention, images(FEWEST - 1), False)
    assert shapes(attention) == []
