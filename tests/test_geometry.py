"""The library's masks: each spec against the whole matrix written out in torch, its values, and the tiles that are found in it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from narrowed import only
from torch import Tensor

import einfuse
from einfuse.ir import classify
from einfuse.runtime import binding
from einfuse.runtime.attention import Attention

Mask = Callable[..., Tensor]
HEADS = 3


def grid(n: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and columns of queries and of keys: ``y[i, 1], x[i, 1], y[1, j], x[1, j]``."""
    t = torch.arange(n)
    y, x = t // columns, t % columns
    return y[:, None], x[:, None], y[None], x[None]


def line(n: int) -> tuple[Tensor, Tensor]:
    t = torch.arange(n)
    return t[:, None], t[None]


def clamped(n: int, window: int, dilation: int) -> Tensor:
    """The neighbourhoods of NATTEN on a line of n, one query after the other."""
    out = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        same = [j for j in range(n) if j % dilation == i % dilation]
        at = same.index(i)
        start = max(0, min(at - window // 2, len(same) - window))
        out[i, same[start : start + window]] = True
    return out


def neighbourhood(n: int, window: int = 7, dilation: int = 1) -> Tensor:
    return clamped(n, window, dilation)


def neighbourhood_2d(n: int, columns: int = 14, window: int = 7, dilation: int = 1) -> Tensor:
    rows = -(-n // columns)
    y, x, v, u = grid(n, columns)
    return clamped(rows, window, dilation)[y, v] & clamped(columns, window, dilation)[x, u]


def window_3d(n: int, rows: int = 8, columns: int = 8, depth: int = 2, height: int = 4, width: int = 4) -> Tensor:
    t = torch.arange(n)
    frame, y, x = t // (rows * columns), t // columns % rows, t % columns
    blocks = torch.stack([frame // depth, y // height, x // width], 1)
    return (blocks[:, None] == blocks[None]).all(-1)


def halo(n: int, columns: int = 16, block: int = 4, halo: int = 1) -> Tensor:
    y, x, v, u = grid(n, columns)
    out = torch.ones(n, n, dtype=torch.bool)
    for a, b in ((y, v), (x, u)):
        out = out & (b - a // block * block >= -halo) & (b - a // block * block < block + halo)
    return out


def swin(n: int, columns: int = 14, window: int = 7, shift: int = 3) -> Tensor:
    """By rolling a picture of token numbers, cutting it, and masking the regions as Swin does."""
    rows = -(-n // columns)
    token = torch.arange(rows * columns).reshape(rows, columns).roll((-shift, -shift), (0, 1))
    region = torch.zeros(rows, columns, dtype=torch.int64)
    if shift:
        region[-shift:] += 1
        region[:, -shift:] += 2
    out = torch.zeros(rows * columns, rows * columns, dtype=torch.bool)
    for r in range(0, rows, window):
        for c in range(0, columns, window):
            cells = token[r : r + window, c : c + window].reshape(-1)
            kind = region[r : r + window, c : c + window].reshape(-1)
            out[cells[:, None], cells[None]] = kind[:, None] == kind[None]
    return out[:n, :n]


def axial(n: int, columns: int = 16, along: str = "row") -> Tensor:
    y, x, v, u = grid(n, columns)
    return {"row": y == v, "column": x == u, "both": (y == v) | (x == u)}[along]


def cross_shaped(n: int, columns: int = 16, stripe: int = 2) -> Tensor:
    y, x, v, u = grid(n, columns)
    across, down = y // stripe == v // stripe, x // stripe == u // stripe
    return torch.stack([across if h < HEADS // 2 else down for h in range(HEADS)])


def grid_groups(n: int, columns: int = 16, size: int = 4) -> Tensor:
    y, x, v, u = grid(n, columns)
    rows = max(1, -(-n // columns) // size)
    return (y % rows == v % rows) & (x % (columns // size) == u % (columns // size))


def strided(n: int, stride: int = 32) -> Tensor:
    out = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        out[i, max(0, i - stride) : i + 1] = True
        out[i, [j for j in range(i + 1) if (i - j) % stride == 0]] = True
    return out


def fixed(n: int, stride: int = 32, summary: int = 4) -> Tensor:
    out = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        out[i, i // stride * stride : i + 1] = True
        for end in range(stride, i + stride + 1, stride):
            out[i, end - summary : min(end, i + 1)] = True
    return out


def longformer(n: int, marked: Tensor, reach: int = 64) -> Tensor:
    near = torch.ones(n, n).tril(reach).triu(-reach).bool()
    return (near | marked[:, :, None] | marked[:, None])[:, None]


def block_dilated(n: int, segment: int = 64, dilation: int = 4) -> Tensor:
    out = torch.zeros(HEADS, n, n, dtype=torch.bool)
    for h in range(HEADS):
        for start in range(0, n, segment):
            picked = torch.tensor(
                [t for t in range(start, min(n, start + segment)) if t % dilation == h % dilation], dtype=torch.int64
            )
            out[h, picked[:, None], picked[None]] = picked[None] <= picked[:, None]
    return out


def lookhere(n: int, view: Tensor, slope: Tensor, columns: int = 14, half: bool = False) -> Tensor:
    y, x, v, u = grid(n, columns)
    angle = torch.rad2deg(torch.atan2((v - y).double(), (u - x).double()))
    centre = {1: 0.0, 2: 180.0, 3: 90.0, 4: -90.0}
    out = []
    for w in view.tolist():
        away = torch.zeros_like(angle) if w == 0 else ((angle - centre[w] + 180) % 360 - 180).abs()
        out.append((away <= (90 if half else 45) + 1e-6) | ((y == v) & (x == u)))
    return torch.stack(out)


def head_windows(n: int, window: Tensor) -> Tensor:
    i, j = line(n)
    return (j <= i) & (j > i - window[:, None, None])


def graph(n: int, adjacent: Tensor) -> Tensor:
    return adjacent[:, None]


def block_table(n: int, live: Tensor, block: int = 64) -> Tensor:
    return live.repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :n, :n]


def chunked(n: int, width: int = 512) -> Tensor:
    blocks: Tensor = torch.block_diag(*[torch.ones(min(width, n - s), min(width, n - s)) for s in range(0, n, width)])
    return blocks.tril().bool()


def streaming(n: int, window: int = 256, sinks: int = 4) -> Tensor:
    out = torch.ones(n, n).tril().triu(1 - window).bool()
    out[:, :sinks] = True
    return out.tril()


def prefix(n: int, prefix: Tensor) -> Tensor:
    out = torch.ones(n, n).tril().bool().repeat(len(prefix), 1, 1, 1)
    for b, length in enumerate(prefix.tolist()):
        out[b, :, :, :length] = True
    return out


def document(n: int, doc: Tensor) -> Tensor:
    return ((doc[:, :, None] == doc[:, None]) & torch.ones(n, n).tril().bool())[:, None]


def causal(n: int) -> Tensor:
    return torch.ones(n, n).tril().bool()


def sliding_window(n: int, window: int = 256) -> Tensor:
    return causal(n).triu(1 - window)


def local(n: int, reach: int = 128) -> Tensor:
    return torch.ones(n, n).tril(reach).triu(-reach).bool()


def padding(n: int, pad: Tensor) -> Tensor:
    return pad[:, None, None].expand(2, 1, n, n)


def drawn(*counters: int) -> float:
    """What `random` is documented to be: 31 bits of two rounds of multiply and shift for each counter, the upper 24 as a number."""

    def mixed(x: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            x = (x ^ x >> shift) * factor % 2**32
        return x ^ x >> 16

    bits = counters[0]
    for c in counters[1:]:
        bits = mixed(mixed(bits ^ 0x9E3779B9) ^ c) % 2**31
    return (bits >> 7) / 2**24


def token_masking(n: int, rate: float = 0.1, seed: int = 0) -> Tensor:
    out = torch.ones(2, 1, n, n, dtype=torch.bool)
    for b, i in itertools.product(range(2), range(n)):
        x = drawn(seed, b, i)
        if x < rate:
            out[b, :, i] = x >= rate / 2
            out[b, :, i, i] = x < rate / 2
    return out


def video_heads(n: int, temporal: Tensor, pixels: int = 64, text: int = 0, frames: int = 1, places: int = 8) -> Tensor:
    t = torch.arange(n)
    spatial = (t[:, None] // pixels - t // pixels).abs() <= frames
    across = (t[:, None] % pixels - t % pixels).abs() <= places
    read = (t[:, None] >= n - text) | (t >= n - text)
    return torch.where(temporal[..., None, None], across, spatial) | read


def block_diffusion(n: int, width: int = 4) -> Tensor:
    """By the paper's three parts: own blocks of the noised half, clean blocks before, clean blocks up to the own one."""
    half = (n + 1) // 2
    own = torch.block_diag(*[torch.ones(min(width, half - s), min(width, half - s)) for s in range(0, half, width)]).bool()
    block = torch.arange(half) // width
    upto = block[:, None] >= block
    return torch.cat([torch.cat([own, upto & ~own], 1), torch.cat([torch.zeros_like(own), upto], 1)])[:n, :n]


def any_order(n: int, turn: Tensor) -> Tensor:
    return (turn[:, None] <= turn[:, :, None])[:, None]


def tree(n: int, last: Tensor) -> Tensor:
    i, j = line(n)
    return ((j <= i) & (i <= last[:, None]))[:, None]


def sliding_tile(n: int, frames: int, rows: int, columns: int, box: int, reach: int) -> Tensor:
    """A box and those around it, in every direction; a window that would leave the video is moved inside."""
    out = torch.ones(n, n, dtype=torch.bool)
    at = torch.arange(n) // box
    for size, place in ((frames, at // (rows * columns)), (rows, at // columns % rows), (columns, at % columns)):
        wide = min(2 * reach + 1, size)
        start = (place - wide // 2).clamp(0, size - wide)[:, None]
        out &= (place >= start) & (place < start + wide)
    return out


def radial(n: int, pixels: int) -> Tensor:
    """As the paper's formula of the mask, frame by frame."""
    out = torch.zeros(n, n, dtype=torch.bool)
    place = torch.arange(n) % pixels
    near = (place[:, None] - place).abs()
    for x in range(0, n, pixels):
        for y in range(0, n, pixels):
            apart = abs(x - y) // pixels
            power = 2 ** int(math.log2(max(apart, 1)))
            pair = slice(x, x + pixels), slice(y, y + pixels)
            diagonal = (near[pair] == 0) & (apart % math.ceil(power / pixels) == 0)
            out[pair] = (near[pair] + 1 <= pixels / power) | diagonal | (y == 0)
    return out


CASES: dict[str, tuple[Mask, dict[str, Any]]] = {
    "neighbourhood": (neighbourhood, {"window": 7}),
    "neighbourhood dilated": (neighbourhood, {"window": 5, "dilation": 3}),
    "neighbourhood_2d": (neighbourhood_2d, {"columns": 9, "window": 5}),
    "neighbourhood_2d dilated": (neighbourhood_2d, {"columns": 13, "window": 3, "dilation": 2}),
    "window_3d": (window_3d, {"rows": 4, "columns": 6, "depth": 2, "height": 2, "width": 3}),
    "halo": (halo, {"columns": 10, "block": 3, "halo": 2}),
    "swin": (swin, {"columns": 9, "window": 3, "shift": 1}),
    "swin unshifted": (swin, {"columns": 8, "window": 4, "shift": 0}),
    "axial": (axial, {"columns": 11}),
    "axial column": (axial, {"columns": 11, "along": "column"}),
    "axial both": (axial, {"columns": 11, "along": "both"}),
    "cross_shaped": (cross_shaped, {"columns": 10, "stripe": 3}),
    "grid": (grid_groups, {"columns": 12, "size": 3}),
    "strided": (strided, {"stride": 11}),
    "fixed": (fixed, {"stride": 10, "summary": 3}),
    "longformer": (longformer, {"reach": 9}),
    "block_dilated": (block_dilated, {"segment": 24, "dilation": 3}),
    "lookhere": (lookhere, {"columns": 12}),
    "lookhere half": (lookhere, {"columns": 12, "half": True}),
    "head_windows": (head_windows, {}),
    "graph": (graph, {}),
    "block_table": (block_table, {"block": 32}),
    "causal": (causal, {}),
    "sliding_window": (sliding_window, {"window": 30}),
    "local": (local, {"reach": 13}),
    "padding": (padding, {}),
    "chunked": (chunked, {"width": 50}),
    "streaming": (streaming, {"window": 20, "sinks": 3}),
    "prefix": (prefix, {}),
    "document": (document, {}),
    "token_masking": (token_masking, {"rate": 0.4, "seed": 5}),
    "block_diffusion": (block_diffusion, {"width": 8}),
    "any_order": (any_order, {}),
    "tree": (tree, {}),
    "sliding_tile": (sliding_tile, {"frames": 10, "rows": 5, "columns": 5, "box": 4, "reach": 1}),
    "radial": (radial, {"pixels": 9}),
    "video_heads": (video_heads, {"pixels": 24, "text": 9, "frames": 0, "places": 2}),
}


compiled = functools.cache(einfuse.compile)


def tables(name: str, n: int) -> dict[str, Tensor]:
    """What the spec reads beside query, key and value."""
    random = torch.Generator().manual_seed(n)
    made: dict[str, Callable[[], Tensor]] = {
        "marked": lambda: torch.rand(2, n, generator=random) < 0.05,
        "view": lambda: torch.tensor([1, 4, 0]),
        "slope": lambda: torch.rand(HEADS, generator=random, dtype=torch.float64),
        "window": lambda: torch.tensor([1, 30, 500]),
        "adjacent": lambda: torch.rand(2, n, n, generator=random) < 0.1,
        "live": lambda: torch.rand(HEADS, -(-n // 32), -(-n // 32), generator=random) < 0.4,
        "prefix": lambda: torch.tensor([0, 40]),
        "temporal": lambda: torch.tensor([[True, False, True], [False, False, True]]),
        "turn": lambda: torch.stack([torch.randperm(n, generator=random) for _ in range(2)]),
        "last": lambda: torch.arange(n) + torch.randint(0, 9, (2, n), generator=random),
        "pad": lambda: torch.rand(2, n, generator=random) < 0.8,
        "doc": lambda: torch.rand(2, n, generator=random).mul(5).long().sort(-1).values,
    }
    return {t.name: made[t.name]() for t in compiled(name).cascade.inputs if not t.param and t.name not in "qkv"}


def case(name: str, n: int, dtype: torch.dtype = torch.float64) -> tuple[Attention, dict[str, Any], Tensor]:
    """The attention, what to call it with, and the mask ``[2, HEADS, n, n]``."""
    mask, params = CASES[name]
    spec = name.split()[0]
    folded = {k: v for k, v in params.items() if isinstance(v, str | bool)}
    attention = compiled(spec, **folded)
    torch.manual_seed(n)
    given = tables(spec, n)
    qkv = {x: torch.randn(2, HEADS, n, 4, dtype=dtype) for x in "qkv"}
    numbers = {k: v for k, v in params.items() if k not in folded}
    whole = torch.broadcast_to(mask(n, **given, **params), (2, HEADS, n, n))
    return attention, {**qkv, **{k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}, **numbers}, whole


def masked_softmax(name: str, inputs: dict[str, Any], mask: Tensor) -> Tensor:
    s = inputs["q"] @ inputs["k"].mT / 2
    if name.startswith("lookhere"):
        y, x, v, u = grid(s.shape[-1], inputs["columns"])
        s = s - inputs["slope"][:, None, None] * ((y - v) ** 2 + (x - u) ** 2).to(s.dtype).sqrt()
    dead = ~mask.any(-1, keepdim=True)
    values: Tensor = inputs["v"]
    return torch.softmax(s.masked_fill(~mask & ~dead, -torch.inf), -1).masked_fill(dead, 0.0) @ values


def test_every_mask_of_the_library_is_here() -> None:
    named = {s.name for s in einfuse.list_specs() if s.family == "masks"}
    assert named == {n.split()[0] for n in CASES}


def test_frames_that_are_far_apart() -> None:
    """Of 1,024 frames of one place, the last row: distances up to 1,023, past each power of two."""
    n = 1024
    q, k, v = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, n, 2), torch.eye(n)[None, None]
    seen = only(compiled("radial").reference(q.expand(1, 1, n, 2), k, v, pixels=1))[0, 0, -1] > 0
    apart = torch.arange(n - 1, -1, -1).clamp(min=1)
    exact = apart % 2 ** apart.log2().floor().long() == 0
    exact[0] = True
    assert seen.equal(exact)


@pytest.mark.parametrize("n", [1, 7, 127, 129])
@pytest.mark.parametrize("name", CASES)
def test_values_and_tiles(name: str, n: int) -> None:
    """Values as the whole matrix; a tile that is said to be empty or full is, and nearly all that are have been found."""
    attention, inputs, whole = case(name, n)
    torch.testing.assert_close(attention.reference(**inputs), masked_softmax(name, inputs, whole))
    found, tile = tiles(attention, inputs, n), 16
    side = -(-n // tile)
    padded = torch.zeros(2, HEADS, side * tile, side * tile, dtype=torch.bool)
    inside = torch.zeros_like(padded)
    padded[..., :n, :n], inside[..., :n, :n] = whole, True
    blocks = [x.reshape(2, HEADS, side, tile, side, tile).transpose(3, 4).flatten(4) for x in (padded, padded | ~inside)]
    some, every = blocks[0].any(-1).numpy(), blocks[1].all(-1).numpy()
    assert not (found == 0)[some].any(), "a tile with points is skipped"
    assert every[found == 2].all(), "a tile with holes is taken for full"
    exact = np.where(some, np.where(every, 2, 1), 0)
    if n % tile:
        exact[..., -1] = np.minimum(exact[..., -1], 1)
    assert n < 100 or (found == exact).mean() >= PRECISION.get(name, 1.0)


PRECISION = {
    "neighbourhood_2d dilated": 0.9,
    "halo": 0.98,
    "swin": 0.84,
    "video_heads": 0.98,
    "token_masking": 0.9,
    "sliding_tile": 0.98,
    "radial": 0.98,
    "block_diffusion": 0.95,
}
"""The share of tiles found exactly, where it is not all: grids whose rows the tiles do not follow, and what only counters know."""


def tiles(attention: Attention, inputs: dict[str, Any], n: int) -> Any:
    cascade = attention.cascade
    mask = next(x.mask for x in cascade.einsums if x.target == "s")
    tensors = {k: v for k, v in inputs.items() if isinstance(v, Tensor)}
    numbers = {k: v for k, v in inputs.items() if not isinstance(v, Tensor)}
    numbers = {t.name: t.default for t in cascade.inputs if t.param} | numbers
    sizes = {n: int(x) for n, x in binding.sizes(cascade, tensors).items()}
    arrays = {k: v.numpy() for k, v in tensors.items()}
    found = classify(mask, ("i", n, 16), ("j", n, 16), sizes, numbers, arrays, {"b": 2, "h": HEADS})
    shape = [2 if "b" in found.ranks else 1, HEADS if "h" in found.ranks else 1, *found.kind.shape[-2:]]
    return np.broadcast_to(found.kind.reshape(shape), (2, HEADS, *found.kind.shape[-2:]))


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_the_whole_matrix_at_odd_sizes(name: str) -> None:
    """Live tiles alone give what the whole masked matrix gives, in a program whose tiles divide no size."""
    for n in (1, 7, 127, 129, 1000):
        attention, inputs, mask = case(name, n, torch.float32)
        found = attention.with_backend("torch")(**inputs)
        torch.testing.assert_close(found, masked_softmax(name, inputs, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 129, 1000])
def test_a_list_of_edges(n: int) -> None:
    """The edges of a random graph, in order of their targets and shuffled: as the matrix of the graph, gradients included."""
    live = torch.rand(n, n) < min(0.4, 3 / n)
    target, source = live.nonzero().unbind(1)
    q, k, v = (torch.randn(2, HEADS, n, 4, requires_grad=True) for _ in range(3))
    attention = compiled("edges").with_backend("torch")
    wanted = masked_softmax("", {"q": q, "k": k, "v": v}, live.expand(2, HEADS, n, n))
    expected = torch.autograd.grad(wanted.sin().sum(), (q, k, v))
    for order in (torch.arange(len(source)), torch.randperm(len(source))):
        found = only(attention(q, k, v, source[order], target[order]))
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found.sin().sum(), (q, k, v)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neighbourhood_2d dilated", "swin", "block_dilated", "lookhere"])
def test_kernels(name: str) -> None:
    attention, inputs, mask = case(name, 129, torch.float32)
    torch.testing.assert_close(attention(**inputs), masked_softmax(name, inputs, mask), rtol=1e-5, atol=1e-5)
