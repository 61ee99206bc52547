"""Layers over whole images, beside dense masks made by looking at every pair of pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import through
from torch.nn import functional

from einfuse.library.layers import vision_masks as vm
from einfuse.library.layers.common import Attending

SIDE = 6
X = (2, SIDE, SIDE, 8)
AT = torch.arange(SIDE * SIDE)
Y, Z = AT // SIDE, AT % SIDE


def dense(layer: Attending, x: torch.Tensor, visible: torch.Tensor, bias: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Attended values before the output map, heads joined; visible: [N, N] or [H, N, N]."""
    q, k, v = (heads(m(x.reshape(x.shape[0], -1, x.shape[-1])), layer.heads) for m in (layer.query, layer.key, layer.value))
    s = q @ k.mT / math.sqrt(q.shape[-1]) + bias
    return joined(torch.softmax(s.masked_fill(~visible, -torch.inf), -1) @ v)


def pairs(visible: Callable[[int, int, int, int], bool]) -> torch.Tensor:
    """The mask of a rule over (row, column) of the query and (row, column) of the key."""
    places = [(y, x) for y in range(SIDE) for x in range(SIDE)]
    return torch.tensor([[visible(*a, *c) for c in places] for a in places])


def test_cross_shaped_windows() -> None:
    layer = vm.CrossShapedAttention(8, 2, 3, backend="torch")
    mask = torch.stack([pairs(lambda y, x, v, u: y // 3 == v // 3), pairs(lambda y, x, v, u: x // 3 == u // 3)])

    def eager(x: torch.Tensor) -> torch.Tensor:
        values = layer.value(x).permute(0, 3, 1, 2)
        local = torch.zeros_like(values)
        for s in (slice(0, 3), slice(3, 6)):
            local[:, :4, s] = layer.enhance[0](values[:, :4, s])
            local[:, 4:, :, s] = layer.enhance[1](values[:, 4:, :, s].mT).mT
        return through(layer.out, dense(layer, x, mask).reshape(x.shape) + local.permute(0, 2, 3, 1))

    agree(layer, eager, torch.randn(X))


def test_neighborhood() -> None:
    layer = vm.NeighborhoodAttention(8, 2, (SIDE, SIDE), 3, backend="torch")

    def near(a: int, c: int) -> bool:
        first = max(0, min(a - 1, SIDE - 3))
        return first <= c <= first + 2

    mask = pairs(lambda y, x, v, u: near(y, v) and near(x, u))
    assert (mask.sum(1) == 9).all()
    dy, dx = (Y[None] - Y[:, None]).clamp(-2, 2) + 2, (Z[None] - Z[:, None]).clamp(-2, 2) + 2
    agree(layer, lambda x: layer.out(dense(layer, x, mask, layer.table[:, dy, dx])).reshape(x.shape), torch.randn(X))


def test_halo() -> None:
    layer = vm.HaloAttention(8, 2, SIDE, 3, 1, backend="torch")

    def near(a: int, c: int) -> bool:
        return a // 3 * 3 - 1 <= c <= a // 3 * 3 + 3

    mask = pairs(lambda y, x, v, u: near(y, v) and near(x, u))
    dy, dx = (Y[None] - Y[:, None]).clamp(-3, 3) + 3, (Z[None] - Z[:, None]).clamp(-3, 3) + 3

    def eager(x: torch.Tensor) -> torch.Tensor:
        q = heads(layer.query(x.reshape(2, -1, 8)), 2)
        relative = layer.row[:, dy] + layer.column[:, dx]  # [H, N, N, D]
        return through(layer.out, dense(layer, x, mask, torch.einsum("bhid,hijd->bhij", q, relative))).reshape(x.shape)

    agree(layer, eager, torch.randn(X))


MASKED: dict[str, tuple[Callable[[], Attending], Callable[[int, int, int, int], bool]]] = {
    "circle": (lambda: vm.CircleAttention(8, 2, 2.5, backend="torch"), lambda y, x, v, u: math.hypot(y - v, x - u) < 2.5),
    "block_causal": (
        lambda: vm.BlockCausalAttention(8, 2, 2, backend="torch"),
        lambda y, x, v, u: (y // 2 - v // 2, x // 2 - u // 2) in {(0, 0), (0, 1), (1, 0), (1, 1)},
    ),
}


@pytest.mark.parametrize("name", MASKED)
def test_masks_of_two_positions(name: str) -> None:
    make, rule = MASKED[name]
    layer, mask = make(), pairs(rule)
    agree(layer, lambda x: layer.out(dense(layer, x, mask)).reshape(x.shape), torch.randn(X))


@pytest.mark.parametrize("dilated", [False, True])
def test_volume_windows(dilated: bool) -> None:
    layer = vm.VolumeAttention(8, 2, 2, dilated, backend="torch")
    places = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(6), indexing="ij"), -1).reshape(-1, 3)
    key = places % 2 if dilated else places // 2
    mask = (key[:, None] == key[None]).all(-1)
    agree(layer, lambda x: layer.out(dense(layer, x, mask)).reshape(x.shape), torch.randn(1, 2, 4, 6, 8))


def test_lookhere() -> None:
    layer = vm.LookHereAttention(12, 6, directed=4, fade=2.0, backend="torch")
    everything = torch.ones(SIDE * SIDE, SIDE * SIDE, dtype=torch.bool)
    seen = [
        pairs(lambda y, x, v, u: v <= y),  # up: keys below the query are hidden
        pairs(lambda y, x, v, u: u >= x),
        pairs(lambda y, x, v, u: v >= y),
        pairs(lambda y, x, v, u: u <= x),
        everything,
        everything,
    ]
    slopes = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.25, 0.0625]) / 2
    far = torch.hypot((Y[:, None] - Y[None]).double(), (Z[:, None] - Z[None]).double())

    def eager(x: torch.Tensor) -> torch.Tensor:
        return through(layer.out, dense(layer, x, torch.stack(seen), -slopes[:, None, None] * far)).reshape(x.shape)

    agree(layer, eager, torch.randn(1, SIDE, SIDE, 12))


@pytest.mark.parametrize("scores", [False, True])
def test_manhattan_decay(scores: bool) -> None:
    layer = vm.ManhattanAttention(8, 2, scores, backend="torch")
    far = ((Y[:, None] - Y[None]).abs() + (Z[:, None] - Z[None]).abs()).double()
    gamma = torch.tensor([1 - 2.0**-2, 1 - 2.0**-4], dtype=torch.float64)[:, None, None]

    def eager(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(m(x.reshape(2, -1, 8)), 2) for m in (layer.query, layer.key, layer.value))
        s = q @ k.mT / 2
        w = torch.softmax(s + far * gamma.log(), -1) if scores else torch.softmax(s, -1) * gamma**far
        values = layer.value(x).permute(0, 3, 1, 2)
        local = functional.conv2d(values, layer.local.weight, layer.local.bias, padding=2, groups=8)
        return through(layer.out, joined(w @ v) + local.permute(0, 2, 3, 1).reshape(2, -1, 8)).reshape(x.shape)

    agree(layer, eager, torch.randn(X), tolerance=1e-6)  # the rates are a buffer made in single precision


def test_a_window_for_every_head() -> None:
    layer = vm.HeadWindowAttention(8, (2, 4, 12, 3), 12, backend="torch")
    at = torch.arange(12)
    mask = torch.stack([at[:, None] // s == at[None] // s for s in (2, 4, 12, 3)])
    agree(layer, lambda x: layer.out(dense(layer, x, mask, layer.table[:, at[None] - at[:, None] + 11])), torch.randn(2, 12, 8))
