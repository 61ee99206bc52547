"""Layers that read references, memories, maps, layers and stacks, and those that make fewer tokens, beside their formulas."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from agreement import agree, heads, joined
from narrowed import added, three, through
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.library.layers import common, reading, reducing, references


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    s = q @ k.mT / math.sqrt(q.shape[-1])
    return joined((s if seen is None else s.masked_fill(~seen, -math.inf)).softmax(-1) @ v)


def own(layer: common.Attending, x: Tensor, seen: Tensor | None = None) -> Tensor:
    return through(layer.out, attend(*three(heads(m(x), layer.heads) for m in (layer.query, layer.key, layer.value)), seen))


def across(layer: references.CrossAttention, x: Tensor, other: Tensor, seen: Tensor | None = None) -> Tensor:
    q, k, v = heads(layer.query(x), layer.heads), heads(layer.key(other), layer.heads), heads(layer.value(other), layer.heads)
    return through(layer.out, attend(q, k, v, seen))


class Joint(nn.Module):
    """A layer with several results as one tensor."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([x.flatten() for x in self.layer(*inputs)])


def test_cross_and_masked_cross() -> None:
    layer = references.CrossAttention(8, 2, 6, backend="torch")
    pad = torch.rand(2, 7) > 0.3
    agree(layer, lambda x, o, p: across(layer, x, o, p[:, None, None]), torch.randn(2, 5, 8), torch.randn(2, 7, 6), pad)
    masked = references.MaskedCrossAttention(8, 2, 6, backend="torch")
    logits = torch.randn(2, 5, 7)
    logits[0, 3] = -1.0  # an empty mask sees everything

    def eager(x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        seen = mask.sigmoid() >= 0.5
        seen[0, 3] = True
        return across(masked, x, other, seen[:, None])

    agree(masked, eager, torch.randn(2, 5, 8), torch.randn(2, 7, 6), logits)


def test_otsu() -> None:
    marks = torch.tensor([[0.1, 0.12, 0.9, 0.8, 0.11, 0.95], [0.5, 0.0, 0.02, 0.01, 0.55, 0.03]])
    layer = references.OtsuCrossAttention(8, 2, backend="torch")
    seen = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 0, 0, 0, 1, 0]]).bool()
    agree(layer, lambda x, o, m: across(layer, x, o, seen[:, None, None]), torch.randn(2, 5, 8), torch.randn(2, 6, 8), marks)


def test_memory() -> None:
    layer = references.MemoryAttention(8, 2, 2, backend="torch")
    frames = [torch.randn(2, 4, 8).double() for _ in range(3)]
    agree(layer, lambda x: x + own(layer.own, layer.norms[0](x)), torch.randn(2, 5, 8))
    for frame in frames:
        layer.remember(frame)

    def eager(x: Tensor) -> Tensor:
        x = x + own(layer.own, layer.norms[0](x))
        return x + across(layer.past, layer.norms[1](x), torch.cat([frames[2] + layer.age[0], frames[1] + layer.age[1]], 1))

    agree(layer, eager, torch.randn(2, 5, 8))


def test_reference_branches() -> None:
    layer = references.ReferenceBranchAttention(8, 2, 6, 0.5, backend="torch")

    def eager(x: Tensor, other: Tensor) -> Tensor:
        asked = [heads(m(x), 2) for m in (layer.query, layer.key, layer.value)]
        read = [heads(m(t), 2) for m, t in ((layer.asking, x), (layer.holding, other), (layer.giving, other))]
        return through(layer.out, attend(*asked) + 0.5 * attend(*read))

    agree(layer, eager, torch.randn(2, 5, 8), torch.randn(2, 4, 6))
    summed = references.SummedCrossAttention(8, 2, 6, 4, backend="torch")

    def every(x: Tensor, *others: Tensor) -> Tensor:
        return added(across(one, x, o) for one, o in zip(summed.each, others, strict=True))  # type: ignore[arg-type]

    agree(summed, every, torch.randn(2, 5, 8), torch.randn(2, 4, 6), torch.randn(2, 3, 4))
    assert summed.each[0].query is summed.each[1].query


def test_self_and_cross_at_once() -> None:
    layer = references.ParallelAttention(8, 2, backend="torch")

    def eager(x: Tensor, other: Tensor) -> Tensor:
        q, k, v = (heads(t, 2) for t in layer.project(x).chunk(3, -1))
        _, k2, v2 = (heads(t, 2) for t in layer.project(other).chunk(3, -1))
        return x + through(layer.join, torch.cat([x, attend(q, k, v), attend(q, k2, v2)], -1))

    agree(layer, eager, torch.randn(2, 5, 8), torch.randn(2, 7, 8))
    wave = torch.polar(torch.tensor([2.0]), torch.tensor([0.5]))
    torch.testing.assert_close(layer.wave(torch.tensor([2.0]), torch.tensor([0.5])), torch.cat([wave.real, wave.imag]))


def test_features_and_costs() -> None:
    layer = references.FeatureCostAttention(8, 6, 2, backend="torch")

    def eager(x: Tensor, cost: Tensor) -> Tensor:
        both = torch.cat([x, cost], -1)
        q, k = heads(layer.query(both), 2), heads(layer.key(both), 2)
        features, costs = attend(q, k, heads(layer.value(x), 2)), attend(q, k, heads(layer.cost_value(cost), 2))
        return torch.cat([(x + layer.out(features)).flatten(), (cost + layer.cost_out(costs)).flatten()])

    agree(Joint(layer), eager, torch.randn(2, 5, 8), torch.randn(2, 5, 6))


def test_knitting() -> None:
    layer = references.KnittingAttention(8, 2, 6, backend="torch")

    def eager(x: Tensor, other: Tensor) -> Tensor:
        c = layer.enter(other)
        x = torch.stack([row + across(layer.rows, row, torch.cat([row, c], 1)) for row in x.unbind(1)], 1)
        return torch.stack([col + across(layer.columns, col, torch.cat([col, c], 1)) for col in x.unbind(2)], 2)

    agree(layer, eager, torch.randn(2, 3, 4, 8), torch.randn(2, 5, 6))


def test_long_and_short() -> None:
    layer = references.LongShortAttention(8, 2, 3, backend="torch")

    def eager(x: Tensor, before: Tensor, memory: Tensor) -> Tensor:
        q, k, v = (heads(m(t.flatten(1, 2)), 2) for m, t in ((layer.query, x), (layer.key, before), (layer.value, before)))
        bias = torch.full((2, 20, 20), -math.inf, dtype=x.dtype)
        for i in range(20):
            y, c = min(max(i // 5 - 1, 0), 1), min(max(i % 5 - 1, 0), 2)
            for j in (5 * (y + n // 3) + c + n % 3 for n in range(9)):
                bias[:, i, j] = layer.table[:, j // 5 - i // 5 + 2, j % 5 - i % 5 + 2]
        short = through(layer.out, joined((q @ k.mT / 2 + bias).softmax(-1) @ v))
        return (across(layer.long, x.flatten(1, 2), memory) + short).reshape(x.shape)

    agree(layer, eager, torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 8), torch.randn(2, 6, 8))


def test_layers_and_blocks() -> None:
    layer = reading.LayerAttention(backend="torch")

    def eager(maps: Tensor) -> Tensor:
        f = maps.reshape(2, 3, -1)
        return maps + layer.weight * (torch.einsum("bin,bjn->bij", f, f).softmax(-1) @ f).reshape(maps.shape)

    agree(layer, eager, 0.3 * torch.randn(2, 3, 2, 2, 4))
    gate = reading.PooledTokenGate(8, 2, 4, backend="torch")

    def gated(x: Tensor) -> Tensor:
        blocks = x.reshape(2, 3, 4, 8)
        return (blocks * own(gate.attend, blocks.amax(2))[:, :, None]).reshape(x.shape)

    agree(gate, gated, torch.randn(2, 12, 8))


def additive(a: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
    s = (a * torch.tanh(q[:, None] + k)).sum(-1)
    p = (s if seen is None else s.masked_fill(~seen, -math.inf)).softmax(-1)
    return (p[..., None] * v).sum(1), p


def test_neighbours_and_coverage() -> None:
    layer = reading.NeighbourAdditiveAttention(6, 8, 5, backend="torch")

    def eager(state: Tensor, image: Tensor) -> Tensor:
        keys = layer.around(image.permute(0, 3, 1, 2)).flatten(2).mT
        return additive(layer.a[0], layer.state(state), keys, image.reshape(2, 12, 8))[0]

    agree(layer, eager, torch.randn(2, 6), torch.randn(2, 3, 4, 8))
    cover = reading.CoverageAttention(6, 8, 5, 3, backend="torch")
    pad = torch.rand(2, 12) > 0.3

    def covered(state: Tensor, image: Tensor, seen: Tensor, pad: Tensor) -> Tensor:
        keys = cover.feature(image.permute(0, 3, 1, 2)) + cover.look(seen[:, None])
        context, p = additive(cover.a[0], cover.state(state), keys.flatten(2).mT, image.reshape(2, 12, 8), pad)
        return torch.cat([context.flatten(), (seen + p.reshape(seen.shape)).flatten()])

    agree(Joint(cover), covered, torch.randn(2, 6), torch.randn(2, 3, 4, 8), torch.rand(2, 3, 4), pad)


def test_poolings() -> None:
    layer = reading.LowRankPooling(8, 3, backend="torch")

    def eager(x: Tensor) -> Tensor:
        s = (x @ layer.key.weight.mT) * (layer.query.weight @ layer.context)
        return s.softmax(1).mT @ x

    agree(layer, eager, torch.randn(2, 7, 8))
    for how in ("gate", "concat", "affine"):
        pool = reading.ConditionedPooling(8, 5, how, backend="torch")

        def conditioned(x: Tensor, c: Tensor, pool: reading.ConditionedPooling = pool) -> Tensor:
            if pool.change is None:
                words = torch.cat([x, c], -1)
            else:
                z = pool.change(c)
                words = z.sigmoid() * x if pool.how == "gate" else z[..., :8] * x + z[..., 8:]
            return additive(pool.a[0], torch.zeros(2, 8, dtype=x.dtype), pool.key(words), x)[0]

        agree(pool, conditioned, torch.randn(2, 7, 8), torch.randn(2, 7, 5))
    with pytest.raises(ValueError, match="by gate, concat or affine, found sum"):
        reading.ConditionedPooling(8, 5, "sum")


def test_stack() -> None:
    layer = reading.StackAttention(8, 4, depth=5, backend="torch")

    def eager(x: Tensor) -> Tensor:
        held, out = torch.zeros(2, 5, 4, dtype=x.dtype), []
        for t in range(6):
            push, pop, stay = (p[:, None, None] for p in layer.action(x[:, t]).softmax(-1).unbind(-1))
            pushed = torch.cat([layer.value(x[:, t]).sigmoid()[:, None], held[:, :-1]], 1)
            popped = torch.cat([held[:, 1:], torch.zeros_like(held[:, :1])], 1)
            held = push * pushed + pop * popped + stay * held
            out.append(held[:, 0])
        return through(layer.out, torch.stack(out, 1))

    agree(layer, eager, torch.randn(2, 6, 8))


def test_merging() -> None:
    layer = reducing.MergingAttention(8, 2, 2, (2.0, 0.5, 0.5), backend="torch")
    size = torch.tensor([[1.0, 2.0, 1.0, 3.0, 1.0, 1.0, 2.0]]).expand(2, -1)

    def eager(x: Tensor, size: Tensor) -> Tensor:
        q, k, v = (heads(m(x), 2) for m in (layer.query, layer.key, layer.value))
        p = (q @ k.mT / 2).exp() * size[:, None, None]
        p = p / p.sum(-1, keepdim=True)
        y = x + layer.out(joined(p @ v))
        tokens, sizes = [], []
        for b in range(2):
            lack = 1 / p[b].mean((0, 1)) / 7
            lack = lack / lack.max()
            small = size[b].min() / size[b]
            key = k[b].mean(0)
            pairs = []
            for e in range(0, 7, 2):
                scores = []
                for o in range(1, 7, 2):
                    likeness = ((1 + F.cosine_similarity(key[e], key[o], dim=0)) / 2) ** 2
                    scores.append((likeness * (lack[e] * lack[o]).sqrt() * (small[e] * small[o]).sqrt()).item())
                pairs.append((max(scores), e, 2 * scores.index(max(scores)) + 1))
            gone = {e: o for _, e, o in sorted(pairs, reverse=True)[:2]}
            for at in [e for e in range(0, 7, 2) if e not in gone] + [1, 3, 5]:
                group = [at, *(e for e, o in gone.items() if o == at)]
                sizes.append(size[b, group].sum())
                tokens.append((y[b, group] * size[b, group, None]).sum(0) / size[b, group].sum())
        return torch.cat([torch.stack(tokens).flatten(), torch.stack(sizes)])

    agree(Joint(layer), eager, torch.randn(2, 7, 8), size)


def test_pooled_tokens() -> None:
    layer = reducing.TokenPooling(8, 2, 3, steps=2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        q, k, v = (heads(m(x), 2) for m in (layer.query, layer.key, layer.value))
        p = (q @ k.mT / 2).softmax(-1)
        y = x + layer.out(joined(p @ v))
        out = []
        for b in range(2):
            weight = p[b].mean((0, 1)).detach()
            centres = [y[b, n] for n in weight.topk(3).indices.tolist()]
            for _ in range(2):
                near = [min(range(3), key=lambda c, n=n: (y[b, n] - centres[c]).norm().item()) for n in range(9)]  # type: ignore[misc]
                for c in range(3):
                    mine = [n for n in range(9) if near[n] == c]
                    centres[c] = (weight[mine, None] * y[b, mine]).sum(0) / weight[mine].sum() if mine else centres[c]
            out.append(torch.stack(centres))
        return torch.stack(out)

    agree(layer, eager, torch.randn(2, 9, 8))


def test_summary_slices_rolls_and_uniform() -> None:
    summary = reducing.SummaryTokenPooling(8, 2, 2, backend="torch")

    def pooled(x: Tensor) -> Tensor:
        x = torch.cat([summary.token.expand(2, -1, -1), x], 1)
        for layer in summary.layers:
            x = x + own(layer, x)  # type: ignore[arg-type]
        return x[:, 0]

    agree(summary, pooled, torch.randn(2, 5, 8))
    order = torch.randperm(8)
    sliced = reducing.SlicedRecursiveAttention(8, 2, 2, backend="torch")
    sliced.forward = functools.partial(sliced.forward, orders=(order,))  # type: ignore[method-assign]  # as it is drawn in training

    def recursive(x: Tensor) -> Tensor:
        for (keep, add), at in zip(sliced.scale, (torch.arange(8), order), strict=True):
            new = torch.empty_like(x)
            for part in at.chunk(2):
                new[:, part] = keep * x[:, part] + add * own(sliced, sliced.norm(x[:, part]))
            x = new
        return x

    agree(sliced, recursive, torch.randn(2, 8, 8))
    rolling = reducing.RollingTokenAttention(8, 2, 2, backend="torch")

    def rolled(x: Tensor) -> Tensor:
        frames = [torch.cat([x[:, (t - 1) % 3, :2], x[:, t, 2:]], 1) for t in range(3)]
        return torch.stack([own(rolling, f) for f in frames], 1)

    agree(rolling, rolled, torch.randn(2, 3, 5, 8))
    agree(reducing.UniformMixing(backend="torch"), lambda x: (x + x.mean(1, keepdim=True)) / 2, torch.randn(2, 5, 8))


@pytest.mark.parametrize("causal", [False, True])
def test_interleaved(causal: bool) -> None:
    layer = reducing.InterleavedAttention(8, 2, causal, backend="torch")

    def eager(x: Tensor, latents: Tensor) -> Tensor:
        below = torch.ones(4, 4).tril().bool() if causal else None
        groups = [g + own(layer.local, layer.norms[0](g), below) for g in x.unbind(1)]
        held = [h + across(layer.read, layer.norms[1](h), g) for h, g in zip(latents.unbind(1), groups, strict=True)]
        every = torch.cat(held, 1)
        step = torch.arange(6) // 2
        every = every + own(layer.across, layer.norms[2](every), step[None] <= step[:, None] if causal else None)
        out = []
        for t, g in enumerate(groups):
            at = t - 1 if causal else t
            out.append(g + across(layer.write, layer.norms[3](g), every[:, 2 * at : 2 * at + 2]) if at >= 0 else g)
        return torch.cat([torch.stack(out, 1).flatten(), every.flatten()])

    agree(Joint(layer), eager, torch.randn(2, 3, 4, 8), torch.randn(2, 3, 2, 8))


def test_diverse() -> None:
    layer = reducing.DiverseAttention(8, 2, 2, backend="torch")

    def eager(x: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2)
        share = layer.mix(image).softmax(1)
        mixed = share[:, :1] * image
        for n in (1, 2):
            means = sum(
                F.pad(image, (n,) * 4)[:, :, n + dy * n :, n + dx * n :][:, :, :4, :4] for dy in (-1, 0, 1) for dx in (-1, 0, 1)
            )
            mixed = mixed + share[:, n : n + 1] * means / 9
        tokens = mixed.flatten(2).mT
        q, k, v = (heads(m(tokens), 2) for m in (layer.query, layer.key, layer.value))
        p = (q @ k.mT / 2).softmax(-1)
        alike = F.cosine_similarity(p * (p > 2 / 16), p.mean(-2, keepdim=True), dim=-1)
        return torch.cat([layer.out(joined(p @ v)).flatten(), alike.mean()[None]])

    class Whole(Joint):
        def forward(self, *inputs: Tensor) -> Tensor:
            found, loss = self.layer(*inputs)
            return torch.cat([found.flatten(), loss[None]])

    agree(Whole(layer), eager, torch.randn(2, 4, 4, 8))
