"""Layers whose streams read each other, which pool by slots, and which scan along paths, beside their formulas."""

from __future__ import annotations

import math

import torch
from agreement import agree, heads, joined
from formulas import SHAPE, X, check, drawn
from narrowed import through
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.library.layers import crossing, references, scanning, vision_coarse, vision_global, vision_windows


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    s = q @ k.mT / math.sqrt(q.shape[-1])
    return (s if seen is None else s.masked_fill(~seen, -math.inf)).softmax(-1) @ v


def cross(layer: references.CrossAttention, x: Tensor, other: Tensor) -> Tensor:
    q, k, v = (heads(m(t), layer.heads) for m, t in ((layer.query, x), (layer.key, other), (layer.value, other)))
    return layer.out(joined(attend(q, k, v)))  # type: ignore[no-any-return]


def test_a_skip_whose_sides_read_each_other() -> None:
    layer = crossing.CrossContextSkip(8, 2, backend="torch")

    def eager(x: Tensor, y: Tensor) -> Tensor:
        cx, cy = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        for n in (0, 2):
            for side in (0, 1):
                own, patches = (cx, y) if side == 0 else (cy, x)
                norm, a = layer.norms[n + side], layer.layers[n + side]
                assert isinstance(a, vision_global.CrossBranchAttention)
                tokens = torch.cat([norm(own), patches[:, 1:]], 1)
                q, k, v = (heads(m(t), 2) for m, t in ((a.query, norm(own)), (a.key, tokens), (a.value, tokens)))
                own = own + a.out(joined(attend(q, k, v)))
                cx, cy = (own, cy) if side == 0 else (cx, own)
        return layer.out(torch.cat([torch.cat([cx, x[:, 1:]], 1), torch.cat([cy, y[:, 1:]], 1)], -1))  # type: ignore[no-any-return]

    agree(layer, eager, torch.randn(2, 7, 8), torch.randn(2, 7, 8))


def test_weights_of_another_block() -> None:
    first, second = (crossing.PropagatedAttention(8, 2, backend="torch") for _ in range(2))

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            encoded, weights = self.first(y)
            return encoded + self.second(x, weights)[0]  # type: ignore[no-any-return]

    def eager(x: Tensor, y: Tensor) -> Tensor:
        maps, values = [], []
        for layer, t in ((first, y), (second, x)):
            q, k, v = (heads(m(t), 2) for m in (layer.query, layer.key, layer.value))
            maps.append((q @ k.mT / 2).softmax(-1))
            values.append(v)
        return first.out(joined(maps[0] @ values[0])) + second.out(joined((maps[0] + maps[1]) @ values[1]))  # type: ignore[no-any-return]

    agree(Both(), eager, torch.randn(2, 7, 8), torch.randn(2, 7, 8))


def test_some_tokens_of_a_finer_image() -> None:
    layer = crossing.HighResolutionReading(8, 2, 6, backend="torch")
    weights = torch.rand(2, 2, 36, generator=torch.Generator().manual_seed(0)) ** 3
    seen = layer.choose(weights, 8, threshold=100, cells=3)
    for b in range(2):
        a = weights[b].sum(0)
        bright = (255 * (a - a.min()) / (a.max() - a.min()) > 100).view(6, 6)
        for y in range(8):
            for x in range(8):
                cell = slice(y * 3 // 8 * 2, y * 3 // 8 * 2 + 2), slice(x * 3 // 8 * 2, x * 3 // 8 * 2 + 2)
                assert seen[b, 8 * y + x] == bright[cell].any()
    assert 0 < seen.sum() < seen.numel()

    def eager(x: Tensor, tokens: Tensor, fine: Tensor, seen: Tensor) -> Tensor:
        rows = []
        for b in range(2):
            some = fine[b][seen[b]]
            k = torch.cat([layer.key(tokens[b]), layer.fine_key(some)])
            v = torch.cat([layer.value(tokens[b]), layer.fine_value(some)])
            rows.append(layer.out(joined(attend(*(heads(t, 2) for t in (layer.query(x[b]), k, v))))))
        return torch.stack(rows)

    agree(layer, eager, torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 64, 6), seen)


def test_two_networks() -> None:
    layer = crossing.TwoNetworkAttention(8, 2, backend="torch")

    def eager(landmarks: Tensor, image: Tensor) -> Tensor:
        frames = []
        for t in range(3):
            z, f = landmarks[:, t], image[:, t]
            both = z + cross(layer.of_landmarks, z, f), f + cross(layer.of_image, f, z)
            frames.append(torch.cat([p.mean(1) for p in both], -1))
        return torch.stack(frames).mean(0)

    agree(layer, eager, torch.randn(2, 3, 4, 8), torch.randn(2, 3, 6, 8))


def test_fast_and_slow_channels() -> None:
    layer = vision_coarse.FrequencyMixer(12, 4, 2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        fast, slow = x[..., :4], x[..., 4:]
        near = F.conv2d(fast.permute(0, 3, 1, 2), layer.convolved.weight, layer.convolved.bias, padding=1, groups=4)
        pooled = slow.view(2, 2, 2, 3, 2, 8).mean((2, 4)).flatten(1, 2)
        read = cross(layer.attend, slow.flatten(1, 2), pooled).view(slow.shape)
        return layer.out(torch.cat([near.permute(0, 2, 3, 1), read], -1))  # type: ignore[no-any-return]

    agree(layer, eager, torch.randn(2, 4, 6, 12))


def test_means_of_the_slots_of_all_windows() -> None:
    layer = vision_coarse.FactorisedWindowAttention(16, 1, 3, 2, backend="torch")

    def slots(part: vision_coarse._SlotMeans, x: Tensor) -> Tensor:
        span = 2 * part.dilation + 1
        image = part.enter(x.permute(0, 3, 1, 2))
        index = [min(n, 2 * 5 - n) for n in range(-(-6 // span) * span)]  # what lies beyond is mirrored
        image = image[:, :, index][:, :, :, index]
        means = [
            image[:, :, part.dilation * y :: span, part.dilation * z :: span].mean((2, 3)) for y in range(3) for z in range(3)
        ]
        return part.slot(torch.stack(means, 1))  # type: ignore[no-any-return]

    def eager(x: Tensor) -> Tensor:
        q = layer.query(x).flatten(1, 2)
        small = F.conv2d(x.permute(0, 3, 1, 2), layer.reduce.weight, layer.reduce.bias, stride=2).flatten(2).mT
        small = layer.norm(small)
        out = [attend(q[..., :2], layer.key(small), layer.value(small))]
        for n, part in enumerate(layer.slots):
            assert isinstance(part, vision_coarse._SlotMeans)
            here = slice(2 + 7 * n, 9 + 7 * n)
            s = slots(part, x[..., here])
            v = part.value(s)
            near = F.conv2d(v.mT.reshape(-1, 7, 3, 3), part.local.weight, part.local.bias, padding=1, groups=7)
            out.append(attend(q[..., here], part.key(s), v + near.flatten(2).mT))
        return layer.out(torch.cat(out, -1)).view(x.shape)  # type: ignore[no-any-return]

    agree(layer, eager, torch.randn(2, 6, 6, 16))


def scan(layer: scanning.SelectiveScan, x: Tensor, source: Tensor, reader: Tensor) -> Tensor:
    """Token by token, as Mamba's paper."""
    step, b, c = F.softplus(layer.step(source)), layer.enter(source), layer.read(reader)
    state, rows = torch.zeros(len(x), x.shape[-1], b.shape[-1], dtype=x.dtype), []
    for t in range(x.shape[1]):
        keep = torch.exp(-step[:, t, :, None] * layer.log_a.exp())
        state = keep * state + (step[:, t] * x[:, t])[..., None] * b[:, t, None]
        rows.append((state * c[:, t, None]).sum(-1) + layer.skip * x[:, t])
    return torch.stack(rows, 1)


def test_paths_through_an_image() -> None:
    rows, up, left, right = (p.tolist() for p in scanning.serpentine(3, 3))
    assert rows == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert up == [6, 7, 8, 5, 4, 3, 0, 1, 2]
    assert left == [6, 3, 0, 1, 4, 7, 8, 5, 2]
    assert right == [8, 5, 2, 1, 4, 7, 6, 3, 0]
    assert sorted(scanning.serpentine(2, 5)[3].tolist()) == list(range(10))
    assert [p.tolist() for p in scanning.straight(2, 2)] == [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [3, 1, 2, 0]]


def test_a_burst_that_the_base_frame_asks() -> None:
    layer = scanning.QueryStateSpace(4, 2, 3, backend="torch")

    def eager(base: Tensor, frames: Tensor) -> Tensor:
        seen = torch.cat([frames[:, 0], frames[:, 1]], -1)
        query = (base + layer.join(torch.cat([base, seen], -1))).flatten(1, 2)
        x, out = layer.enter(seen).flatten(1, 2), torch.zeros(2, 6, 4, dtype=base.dtype)
        for path, s in zip(
            ([0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]), layer.scans, strict=True
        ):
            assert isinstance(s, scanning.SelectiveScan)
            out[:, path] += scan(s, x[:, path], query[:, path], x[:, path])
        gate = torch.sigmoid(F.relu(out.mean(1) @ layer.gate.down.mT) @ layer.gate.up)
        return (out * gate[:, None]).view(base.shape)

    agree(layer, eager, torch.randn(2, 2, 3, 4), torch.randn(2, 2, 2, 3, 4), tolerance=1e-7)


def test_windows_and_a_serpentine() -> None:
    layer = scanning.LaMambaBlock(8, 2, 2, backend="torch")

    def serpent(part: scanning.SerpentineScan, x: Tensor) -> Tensor:
        u, z = part.enter(x).chunk(2, -1)
        near = F.conv2d(u.permute(0, 3, 1, 2), part.local.weight, part.local.bias, padding=1, groups=16)
        u, out = F.silu(near).flatten(2).mT, torch.zeros(())
        for path, s in zip(scanning.serpentine(2, 4), part.scans, strict=True):
            assert isinstance(s, scanning.SelectiveScan)
            out = out + scan(s, u[:, path], u[:, path], u[:, path])[:, path.argsort()]
        return through(part.out, part.norm(out).view(z.shape) * F.silu(z))

    def eager(x: Tensor, condition: Tensor) -> Tensor:
        by = layer.condition(condition)[:, None, None].unflatten(-1, (9, 8)).unbind(-2)
        scanned, windows, network = layer.parts
        assert isinstance(scanned, scanning.SerpentineScan)
        assert isinstance(windows, vision_windows.SwinAttention)
        norm = nn.LayerNorm(8, 1e-6, elementwise_affine=False)
        x = x + by[2] * serpent(scanned, norm(x) * (1 + by[1]) + by[0])
        y = norm(x) * (1 + by[4]) + by[3]
        at = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        apart = at[:, None] - at[None] + 1
        bias = windows.table[:, apart[..., 0], apart[..., 1]]
        halves = []
        for n in (0, 2):
            w = y[:, :, n : n + 2].flatten(1, 2)
            q, k, v = (heads(m(w), 2) for m in (windows.query, windows.key, windows.value))
            halves.append(windows.out(joined((q @ k.mT / 2 + bias).softmax(-1) @ v)).view(-1, 2, 2, 8))
        x = x + by[5] * torch.cat(halves, 2)
        return x + by[8] * network(norm(x) * (1 + by[7]) + by[6])  # type: ignore[no-any-return]

    agree(layer, eager, torch.randn(2, 2, 4, 8), torch.randn(2, 8), tolerance=1e-6)


def test_a_memory_that_learns_by_muon() -> None:
    """Matrices token by token, and the gradient of the loss by autograd."""

    def atlas(x: X) -> Tensor:
        context = x["gamma"].shape[-1]
        rows: list[Tensor] = []
        for b in range(2):
            for h in range(2):
                q, k, v = (x[n][b, h] for n in "qkv")
                m = torch.zeros(v.shape[1], k.shape[1], dtype=torch.float64)
                s = m
                for t in range(len(q)):
                    loss = torch.zeros((), dtype=torch.float64)
                    here = m.detach().requires_grad_() if not m.requires_grad else m
                    for n in range(min(context, t + 1)):
                        loss = loss + x["gamma"][b, h, t, n] * (here @ k[t - n] - v[t - n]).square().sum()
                    with torch.enable_grad():
                        s = x["theta"][b, h, t] * s + torch.autograd.grad(loss, here, create_graph=True)[0]
                    y = s / (s.norm() + 1e-7)
                    for _ in range(5):
                        a = y @ y.T
                        y = 3.4445 * y + (-4.775 * a + 2.0315 * a @ a) @ y
                    m = x["keep"][b, h, t] * m - x["eta"][b, h, t] * y
                    rows.append(m @ q[t])
        return torch.stack(rows).view(2, 2, SHAPE.queries, -1)

    check("atlas", atlas, drawn("atlas"))
