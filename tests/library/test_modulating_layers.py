"""Layers of convolutions, transforms and gates beside their formulas: transforms as sums over places, convolutions as sums over offsets."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from agreement import agree
from narrowed import through, weight
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.library.layers import modulating, spectral


def first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def waves(n: int) -> Tensor:
    """The discrete Fourier transform of n places as a unitary matrix."""
    table = [[cmath.exp(-2j * math.pi * a * b / n) / math.sqrt(n) for b in range(n)] for a in range(n)]
    return torch.tensor(table, dtype=torch.complex128)


def test_a_learned_filter_of_frequencies() -> None:
    layer = spectral.SpectralBlock(3, 4, 6, factor=2)

    def eager(x: Tensor) -> Tensor:
        down, right = waves(4), waves(6)
        seen = torch.einsum("yh,xw,bhwc->byxc", down, right, layer.norms[0](x).to(torch.complex128))
        half = torch.view_as_complex(layer.filter)
        # a real image has conjugate frequencies; those that are their own partner across keep their real part
        mirror = half[[0, 3, 2, 1]][:, [2, 1]].conj()
        own = (half + half[[0, 3, 2, 1]].conj()) / 2
        whole = torch.cat([own[:, :1], half[:, 1:3], own[:, 3:], mirror], 1)
        y = torch.einsum("yh,xw,byxc->bhwc", down.conj(), right.conj(), seen * whole).real
        return x + through(layer.mix, layer.norms[1](y))

    agree(layer, eager, torch.randn(2, 4, 6, 3))


@pytest.mark.parametrize("flipped", [False, True])
def test_long_convolutions_in_two_directions(flipped: bool) -> None:
    layer = spectral.LongConvolution(2, 4, hidden=3, flipped=flipped)

    def eager(x: Tensor) -> Tensor:
        x1, x2, v = last(layer.short(first(layer.project(x)))).chunk(3, -1)
        u, h = x2 * v, filter_of(layer)
        u = u.flip(1, 2) if flipped else u
        y = layer.skip * u
        for a in range(4):
            for b in range(4):
                y = y + F.pad(u, (0, 0, b, 0, a, 0))[:, :4, :4] * h[a, b]
        return through(layer.out, x1 * (y.flip(1, 2) if flipped else y))

    agree(layer, eager, torch.randn(2, 4, 4, 2))
    with pytest.raises(ValueError, match="images of 4 x 4 were expected, found 4 x 5"):
        layer(torch.randn(1, 4, 5, 2).double())


def filter_of(layer: spectral.LongConvolution) -> Tensor:
    """A network of sines of the place and its wave, times an exponential window, place by place."""
    rows = []
    for a in range(4):
        for b in range(4):
            angles = [1e-4 * 2 * math.pi * n / 4 for n in (a, b)]
            y = torch.tensor([c for n, t in zip((a, b), angles, strict=True) for c in (n / 3, math.cos(t), -math.sin(t))])
            y = y.double()
            for stage in layer.stages:
                y = torch.sin(layer.speed * stage(y))
            rows.append(layer.last(y) * torch.exp(-(a + b) / 3 * weight(layer, "decay")))
    return torch.stack(rows).reshape(4, 4, -1)


def test_frequencies_in_balance() -> None:
    layer = spectral.SpectralPooling(3, 2.0, (0.7, 0.8, 0.9))

    def eager(x: Tensor) -> Tensor:
        down, right = waves(5), waves(6)
        y = last(layer.local(first(layer.project(x))))
        near = [[min(a, n - a) for a in range(n)] for n in (5, 6)]
        context = torch.zeros_like(y)
        for n, low in enumerate((0.7, 0.8, 0.9)):
            weights = [
                [1 / 3 if math.hypot(a, b) == 2 else low if math.hypot(a, b) < 2 else 1 - low for b in near[1]] for a in near[0]
            ]
            seen = torch.einsum("yh,xw,bhw->byx", down, right, y[..., n].to(torch.complex128)) * torch.tensor(weights)
            back = torch.einsum("yh,xw,byx->bhw", down.conj(), right.conj(), seen).real
            context = context + layer.spread[n](back[..., None])
        return through(layer.out, y * context)

    agree(layer, eager, torch.randn(2, 5, 6, 3), tolerance=1e-6)  # weights in single precision there


def band(n: int, weights: tuple[float, ...]) -> Tensor:
    """A filter as a matrix: places beyond the edges are their mirror images."""
    out, reach = torch.zeros(n, n, dtype=torch.float64), len(weights) // 2
    for i in range(n):
        for k, w in enumerate(weights):
            j = (i + k - reach) % (2 * n)
            out[i, min(j, 2 * n - 1 - j)] += w
    return out


def test_a_wavelet_transform_and_back() -> None:
    x = torch.randn(2, 6, 8, 3, dtype=torch.float64)
    low, bands = spectral.wavelets(x)
    assert (low.shape, bands.shape) == (x.shape, (2, 6, 3, 4, 3))
    torch.testing.assert_close(spectral.unwavelets(low, bands), x, rtol=0, atol=1e-12)
    rows, columns = (band(n, spectral.LOW) for n in (6, 8))
    torch.testing.assert_close(low, torch.einsum("ih,jw,bhwc->bijc", rows, columns, x))
    edge = torch.einsum("ih,jw,bhwc->bijc", band(6, spectral.HIGH), columns, x)
    a, b, c, d = (edge[:, n::2, m::2] for n in (0, 1) for m in (0, 1))
    torch.testing.assert_close(bands[:, 0], torch.complex(a - d, b + c) / math.sqrt(2))
    torch.testing.assert_close(bands[:, 5], torch.complex(a + d, b - c) / math.sqrt(2))


def test_bands_of_wavelets_are_mixed() -> None:
    layer = spectral.ScatteringMixer(4, 4, 6, blocks=2)

    def eager(x: Tensor) -> Tensor:
        low, bands = spectral.wavelets(x)
        mixed = []
        for g in range(2):
            z = bands[..., 2 * g : 2 * g + 2]
            for n in range(2):
                z = z @ torch.view_as_complex(layer.maps[n])[g] + torch.view_as_complex(layer.shifts[n])[g]
                z = torch.complex(z.real.clamp(min=0), z.imag.clamp(min=0)) if n == 0 else z
            mixed.append(z)
        return spectral.unwavelets(low * layer.low, torch.cat(mixed, -1))

    agree(layer, eager, torch.randn(2, 4, 6, 4))


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    """A depthwise convolution with zeros beyond the edges, offset by offset."""
    reach = weight.shape[-1] // 2
    wide, out = F.pad(x, (0, 0, reach, reach, reach, reach)), torch.zeros_like(x)
    for a in range(2 * reach + 1):
        for b in range(2 * reach + 1):
            out = out + wide[:, a : a + x.shape[1], b : b + x.shape[2]] * weight[:, 0, a, b]
    return out


@pytest.mark.parametrize("averaged", [False, True])
def test_focal_modulation(averaged: bool) -> None:
    layer = modulating.FocalModulation(4, 2, averaged=averaged)

    def eager(x: Tensor) -> Tensor:
        y = layer.project(x)
        q, z, g = y[..., :4], y[..., 4:8], y[..., 8:]
        z1 = F.gelu(depthwise(z, weight(layer.contexts[0])))
        z2 = F.gelu(depthwise(z1, weight(layer.contexts[1])))
        m = g[..., :1] * z1 + g[..., 1:2] * z2 + g[..., 2:] * F.gelu(z2.mean((1, 2), True))
        return through(layer.out, q * layer.modulator(m / 3 if averaged else m))

    agree(layer, eager, torch.randn(2, 4, 5, 4))


def test_gated_and_modulating_convolutions() -> None:
    gated = modulating.GatedConvolution(4, hidden=6, convolved=2)

    def eager(x: Tensor) -> Tensor:
        y = gated.project(gated.norm(x))
        c = depthwise(y[..., 10:], gated.local.weight) + weight(gated.local, "bias")
        return x + through(gated.out, F.gelu(y[..., :6]) * torch.cat([y[..., 6:10], c], -1))

    agree(gated, eager, torch.randn(2, 3, 4, 4))
    mixing = modulating.ConvolutionalModulation(4)

    def mixed(x: Tensor) -> Tensor:
        y = mixing.norm(x)
        a = depthwise(F.gelu(mixing.look(y)), mixing.local.weight) + weight(mixing.local, "bias")
        return x + mixing.scale * through(mixing.out, a * mixing.value(y))

    agree(mixing, mixed, torch.randn(2, 4, 3, 4))
    with pytest.raises(ValueError, match="no more channels than hidden ones can be convolved, found 4 and 2"):
        modulating.GatedConvolution(4, hidden=2)


def bilinear(y: Tensor, at: Tensor) -> Tensor:
    """y: [h, H, W] read at [..., 2] of (row, column), zero outside."""
    low = at.floor()
    out = torch.zeros(*at.shape[:-1], len(y), dtype=y.dtype)
    for a in (0, 1):
        for b in (0, 1):
            r, c = (low + torch.tensor([a, b])).long().unbind(-1)
            inside = (r >= 0) & (r < y.shape[1]) & (c >= 0) & (c < y.shape[2])
            found = y[:, r.clamp(0, y.shape[1] - 1), c.clamp(0, y.shape[2] - 1)].movedim(0, -1)
            weight = (1 - (at - low - torch.tensor([a, b])).abs()).prod(-1)
            out = out + (inside * weight)[..., None] * found
    return out


def test_a_gate_that_reads_elsewhere() -> None:
    layer = modulating.DeformableGate(5, 0.4)

    def eager(x: Tensor) -> Tensor:
        z = layer.narrow(first(x))
        mean = z.mean((2, 3), keepdim=True)
        y = F.gelu((z - mean) / (z.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt())
        offset = layer.offset(y)
        home = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="ij"), -1)
        out = torch.zeros_like(x)
        for k in range(9):
            tap = torch.tensor([k // 3 - 1, k % 3 - 1])
            for b in range(len(x)):
                at = home + tap + offset[b, 2 * k : 2 * k + 2].movedim(0, -1)
                out[b] = out[b] + bilinear(y[b], at) @ layer.weight[:, :, k // 3, k % 3].mT
        return x * through(layer.norm, out).sigmoid()

    agree(layer, eager, torch.randn(2, 4, 3, 5))


def test_masks_of_an_hourglass_and_of_a_pyramid() -> None:
    layer = modulating.ResidualMask(4, levels=1)

    def up(y: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(y, like.shape[2:], mode="bilinear", align_corners=True)

    def pool(y: Tensor) -> Tensor:
        return F.max_pool2d(y, 3, 2, 1)

    def unit(r: nn.Module, y: Tensor) -> Tensor:
        z = y
        for n in (0, 3, 6):
            assert isinstance(r.change, nn.Sequential)
            norm, convolution = r.change[n], r.change[n + 2]
            z = convolution(F.relu(z / math.sqrt(1 + 1e-5) * weight(norm)[:, None, None] + weight(norm, "bias")[:, None, None]))
        return y + z

    def eager(x: Tensor) -> Tensor:
        x = first(x)
        a = unit(layer.down[0], pool(x))
        skip = unit(layer.skips[0], a)
        a = unit(layer.middle, pool(a))
        a = unit(layer.up[0], up(a, skip) + skip)
        trunk = unit(layer.trunk[1], unit(layer.trunk[0], x))
        return last((1 + layer.gate(up(a, x)).sigmoid()) * trunk)

    agree(layer, eager, torch.randn(2, 8, 6, 4))
    pyramid = modulating.PyramidGate(3, (2, 4), hidden=2).double()
    image, small, large = (torch.randn(2, n, n, c).double() for n, c in ((8, 3), (4, 2), (8, 4)))
    shared = pyramid.decode(F.interpolate(pyramid.encode(first(image)), scale_factor=2.0, mode="bilinear"))
    for x, gate, out in zip((small, large), pyramid.gates, pyramid(image, small, large), strict=True):
        seen = F.interpolate(shared, x.shape[1:3], mode="bilinear")
        torch.testing.assert_close(out, x * last(gate(torch.cat([first(x), seen], 1)).sigmoid()))


def test_gated_units_and_networks_of_every_axis() -> None:
    units = modulating.GatedUnits(4, 6)

    def gated(x: Tensor) -> Tensor:
        y = units.outer(x)
        x = x + units.out(units.inner(F.gelu(units.gate(y))) * units.inner(units.value(y)))
        return x + through(units.after, units.outer(x))

    agree(units, gated, torch.randn(2, 3, 4))
    mixer = modulating.PatchMixer(3, 5, 4)

    def eager(x: Tensor) -> Tensor:
        y = mixer.norms[0](x)
        a = y * torch.einsum("bcpf,dc->bdpf", y, weight(mixer.gates[0])).add(
            weight(mixer.gates[0], "bias")[:, None, None]
        ).softmax(1)
        x = x + mixer.mixers[0](a.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        a = mixer.mixers[1](mixer.norms[1](x).mT).mT
        b = torch.einsum("bcpf,qp->bcqf", a, weight(mixer.gates[1])) + weight(mixer.gates[1], "bias")[:, None]
        x = x + a * b.softmax(2)
        a = through(mixer.mixers[2], mixer.norms[2](x))
        return x + a * through(mixer.gates[2], a).softmax(-1)

    agree(mixer, eager, torch.randn(2, 3, 5, 4))


@pytest.mark.parametrize("largest", [False, True])
def test_all_pairs_of_target_and_source(largest: bool) -> None:
    layer = modulating.PervasiveAttention(2, 3, depth=2, growth=2, largest=largest, backend="torch")

    def eager(y: Tensor, x: Tensor) -> Tensor:
        pairs = [[torch.cat([y[:, t], x[:, s]], -1) for s in range(x.shape[1])] for t in range(y.shape[1])]
        h = torch.stack([torch.stack(row, 1) for row in pairs], 1)
        for narrow, look in zip(layer.narrow, layer.look, strict=True):
            full = F.pad(weight(look), (0, 0, 0, 1))  # the row of later targets weighs nothing
            h = torch.cat([h, last(F.conv2d(narrow(first(h)), full, weight(look, "bias"), padding=1))], -1)
        if largest:
            return h.amax(2)
        return (through(layer.score, layer.hidden(h)).softmax(2) * h).sum(2)

    agree(layer, eager, torch.randn(2, 4, 2), torch.randn(2, 5, 3))
    target, source = torch.randn(1, 4, 2).double(), torch.randn(1, 5, 3).double()
    later = target.clone()
    later[:, 3] += 1
    torch.testing.assert_close(layer(target, source)[:, :3], layer(later, source)[:, :3])
