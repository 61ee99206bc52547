"""The specs of routing, mixing, gating and of scores of other kinds: each against its formula in plain torch, and its tiles with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from draws import drawn
from torch import Tensor
from torch.nn import functional as F

import einfuse
from einfuse.runtime.verify import Shape, example_inputs

SHAPE = Shape(2, 2, 9, 13, (6, 5), 1)
NQ, NK = SHAPE.queries, SHAPE.keys
ROW, COLUMN = torch.arange(NQ)[:, None], torch.arange(NK)[None]
X = dict[str, Tensor]


def score(x: X) -> Tensor:
    return x["q"] @ x["k"].mT / math.sqrt(x["q"].shape[-1])


def attend(s: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    return (s if seen is None else s.masked_fill(~seen, -math.inf)).softmax(-1) @ v


def live_or_all(x: X) -> Tensor:
    live = x["live"] | ~x["live"].any(-1, keepdim=True)
    return attend(score(x), x["v"], live[:, None])


def random_keys(x: X) -> Tensor:
    seen = torch.tensor([[drawn(0, b, j) >= 0.5 for j in range(NK)] for b in range(2)])
    return attend(score(x), x["v"], seen[:, None, None])


def head_dropout(x: X) -> Tensor:
    seen = torch.tensor([[drawn(0, b, h) >= 0.25 for h in range(2)] for b in range(2)])
    return attend(score(x), x["v"]) * seen[..., None, None]


def shifted_groups(x: X) -> Tensor:
    move = torch.tensor([0, 4])[:, None, None]
    return attend(score(x), x["v"], (COLUMN <= ROW) & ((ROW + move) // 8 == (COLUMN + move) // 8))


def sink_redistribution(x: X) -> Tensor:
    """Row by row, as the paper tells it."""
    p = score(x).masked_fill(COLUMN > ROW + NK - NQ, -math.inf).softmax(-1)
    out = p.clone()
    for b, h, i in torch.cartesian_prod(*map(torch.arange, p.shape[:3])).tolist():
        sink = x["sink"][b]
        rest = x["visual"][b] & ~sink
        sunk, seen = p[b, h, i, sink].sum(), p[b, h, i, rest].sum()
        if seen > 0 and sunk + seen >= 0.2 and sunk / (sunk + seen) <= 0.6:
            out[b, h, i, sink] = 0.4 * p[b, h, i, sink]
            out[b, h, i, rest] = p[b, h, i, rest] + 0.6 * sunk * p[b, h, i, rest] / seen
    return out @ x["v"]


def one_row(x: X) -> tuple[Tensor, ...]:
    p = score(x).softmax(-1)
    return p @ x["v"], p[:, :, 0]


def sized_keys(x: X) -> tuple[Tensor, ...]:
    """The sizes are the numbers of equal keys."""
    p = score(x).exp() * x["log_size"].exp()[:, None, None]
    p = p / p.sum(-1, keepdim=True)
    return p @ x["v"], p.mean(-2)


def routed_regions(x: X) -> Tensor:
    """Region by region, gathering the tokens of the two best."""
    region = [(t // 8 // 4) * 2 + t % 8 // 4 for t in range(NK)]
    out = torch.zeros(*x["q"].shape[:3], x["v"].shape[-1], dtype=torch.float64)
    for b in range(2):
        best = (x["mq"][b] @ x["mk"][b].mT).topk(2, -1).indices
        for i in range(NQ):
            seen = [j for j in range(NK) if region[j] in best[region[i]]]
            if seen:
                out[b, :, i] = attend(x["q"][b, :, i : i + 1] @ x["k"][b, :, seen].mT / 8, x["v"][b, :, seen])[:, 0]
    return out


def mixture_of_heads(x: X) -> Tensor:
    p = x["gate"].softmax(1)
    kept = torch.zeros_like(p).scatter(1, p.topk(2, 1).indices, 1.0) * p
    return (kept / kept.sum(1, keepdim=True).detach())[..., None] * attend(score(x), x["v"])


def program_head(x: X) -> Tensor:
    s = torch.einsum("bhid,hdc,bhjc->bhij", x["q"], x["match"], x["k"]) > 0.5
    out = torch.zeros(*s.shape[:3], x["v"].shape[-1], dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, s.shape[:3])).tolist():
        found = s[b, h, i].nonzero()[:, 0].tolist()
        out[b, h, i] = x["v"][b, h, min(found, key=lambda j: (j == i, abs(i - j), j)) if found else 0]
    return out


def deformable(x: X) -> Tensor:
    """By grid_sample, map after map."""
    out, levels = torch.zeros(2, 2, NQ, 5, dtype=torch.float64), len(x["start"])
    points = x["a"].shape[-1] // levels
    p = x["a"].softmax(-1).unflatten(-1, (levels, points))
    for n, (start, rows, columns) in enumerate(zip(*(x[k].tolist() for k in ("start", "rows", "columns")), strict=True)):
        image = x["v"][:, :, start : start + rows * columns].mT.reshape(4, 5, rows, columns)
        y, z = (x[k].unflatten(-1, (levels, points))[..., n, :].flatten(0, 1) for k in "yx")
        grid = torch.stack([(2 * z + 1) / columns - 1, (2 * y + 1) / rows - 1], -1)
        out += (F.grid_sample(image, grid, align_corners=False).reshape(2, 2, 5, NQ, points) * p[:, :, None, :, n]).sum(-1).mT
    return out


def block_summaries(x: X) -> tuple[Tensor, ...]:
    """With the summaries' tokens counted one by one."""
    seen = torch.arange(NK)[None] * 2 + 3 <= torch.arange(NQ)[:, None]
    s = torch.einsum("bhgid,bhrd->bhgir", x["q"], x["k"]) / math.sqrt(x["q"].shape[-1])
    p = torch.where(seen, s.masked_fill(~seen, -1e30).softmax(-1), 0.0)
    shared = torch.zeros(NK, 4, dtype=torch.float64)
    for r in range(NK):
        for token in range(2 * r, 2 * r + 4, 2):
            if token // 4 < 4:
                shared[r, token // 4] += 1
    return torch.einsum("bhgir,bhre->bhgie", p, x["v"]), torch.einsum("bhgir,rw->bhiw", p, shared)


def chosen_blocks(x: X) -> Tensor:
    out = torch.zeros(*x["q"].shape[:3], x["v"].shape[-1], dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(*map(torch.arange, x["q"].shape[:3])).tolist():
        past = list(range(i // 4 + 1))
        forced = {w for w in past if w == 0 or i // 4 - w < 2}
        order = sorted(past, key=lambda w: (w not in forced, -x["given"][b, h, i, w].item()))
        best = set(order[: max(3, len(forced))])
        seen = [j for j in range(i + 1) if j // 4 in best and j < NK]
        out[b, h, i] = attend(score(x)[b, h, i : i + 1, seen], x["v"][b, h, seen])[0]
    return out


def stack(x: X) -> Tensor:
    """A list of mixtures, top first."""
    batch, length, width = x["v"].shape
    held, out = [torch.zeros(batch, width, dtype=torch.float64)] * 6, []
    for t in range(length):
        push, pop, stay = (p[:, None] for p in x["action"][:, t].softmax(-1).unbind(-1))
        above, below = [x["v"][:, t], *held[:-1]], [*held[1:], torch.zeros_like(held[0])]
        held = [push * a + stay * h + pop * c for a, h, c in zip(above, held, below, strict=True)]
        out.append(held[0])
    return torch.stack(out, 1)


def lmu(x: X) -> Tensor:
    memory, out = torch.zeros(2, 6, x["u"].shape[-1], dtype=torch.float64), []
    for t in range(x["u"].shape[1]):
        memory = x["a"].mT @ memory + x["c"][:, None] * x["u"][:, t, None]
        out.append(memory)
    return torch.stack(out, 1)


def pooling(x: X) -> Tensor:
    """By average pooling that counts no padding, on rows of 4 that are filled up with tokens outside."""
    n = x["x"].shape[1]
    image = torch.full((2, x["x"].shape[-1], -(-n // 4) * 4), math.nan, dtype=torch.float64)
    image[:, :, :n] = x["x"].mT
    cells = F.unfold(F.pad(image.unflatten(-1, (-1, 4)), (1, 1, 1, 1), value=math.nan), 3).unflatten(1, (-1, 9))
    means: Tensor = cells.nanmean(2)
    return means.mT[:, :n] - x["x"]


def contextual(x: X) -> Tensor:
    far = torch.cdist(x["q"], x["k"])
    return attend(10 * torch.tanh((far.mean(-1, keepdim=True) - far) / far.std(-1, correction=0, keepdim=True)), x["v"])


def polar(x: X) -> Tensor:
    """By complex numbers: a dot product of turned vectors."""
    h = x["turn"][:, None, None]
    q = x["q"].abs() * torch.exp(1j * (h * x["aq"] + x["shift"][:, None] * ROW))
    k = x["k"].abs() * torch.exp(1j * (h * x["ak"] + x["shift"][:, None] * COLUMN.mT))
    return attend((q @ k.mH).real / math.sqrt(x["q"].shape[-1]), x["v"], COLUMN <= ROW)


def relative_grid(x: X) -> Tensor:
    dy, dx = ROW // 8 - COLUMN // 8, ROW % 8 - COLUMN % 8
    return attend(score(x) + x["table"][:, dy + 7, dx + 7], x["v"])


def residual_scores(x: X) -> tuple[Tensor, ...]:
    s = score(x) + x.get("previous", torch.zeros(()))
    return s.softmax(-1) @ x["v"], s


def additive_map(x: X) -> tuple[Tensor, ...]:
    s = (x["a"][:, None, None] * torch.tanh(x["q"][..., None, :] + x["k"][:, :, None])).sum(-1)
    p = s.softmax(-1) if "pad" not in x else s.masked_fill(~x["pad"][:, None, None], -math.inf).softmax(-1)
    return p @ x["v"], p


def low_rank_pooling(x: X) -> Tensor:
    s = (x["p"] * x["c"]).mT
    return attend(s, x["v"], x["pad"][:, None] if "pad" in x else None)


def latent_alignment(x: X) -> Tensor:
    """Through the output network once for every key."""
    each = [(x["v"][:, :, j, None] + x["x"]) @ x["w"].mT for j in range(NK)]
    return (score(x).softmax(-1)[..., None] * torch.stack(each, 3).softmax(-1)).sum(3)


def diversity(x: X) -> tuple[Tensor, ...]:
    p = score(x).softmax(-1)
    return p @ x["v"], F.cosine_similarity(p * (p > 2 / NK), p.mean(-2, keepdim=True), dim=-1)


def reference_branch(x: X) -> Tensor:
    return attend(score(x), x["v"]) + attend(x["query"] @ x["key"].mT / math.sqrt(x["q"].shape[-1]), x["value"])


def self_and_cross(x: X) -> tuple[Tensor, ...]:
    return attend(score(x), x["v"]), attend(x["q"] @ x["key"].mT / math.sqrt(x["q"].shape[-1]), x["value"])


def channel_gate(x: X) -> Tensor:
    both = sum((t @ x["w1"].mT).relu() @ x["w2"] for t in (x["x"].mean(1), x["x"].amax(1)))
    assert isinstance(both, Tensor)
    return x["x"] * both.sigmoid()[:, None]


def split_gate(x: X) -> Tensor:
    hidden = (x["x"].sum(1).mean(1) @ x["w1"].mT).relu()
    return (torch.einsum("br,hre->bhe", hidden, x["w2"]).softmax(1)[:, :, None] * x["x"]).sum(1)


def paged(x: X) -> Tensor:
    keys, values = (x[n][x["page"].long()].flatten(1, 2).transpose(1, 2) for n in "kv")
    past = torch.arange(keys.shape[2]) <= ROW + x["length"][:, None, None] - NQ
    return attend(score(x | {"k": keys}), values, past[:, None])


FORMULAS: dict[str, Callable[[X], Tensor | tuple[Tensor, ...]]] = {
    "live_or_all": live_or_all,
    "random_keys": random_keys,
    "paged": paged,
    "head_dropout": head_dropout,
    "shifted_groups": shifted_groups,
    "sink_redistribution": sink_redistribution,
    "one_row": one_row,
    "sized_keys": sized_keys,
    "routed_regions": routed_regions,
    "mixture_of_heads": mixture_of_heads,
    "program_head": program_head,
    "program_count": lambda x: torch.einsum("bhid,hdc,bhjc->bhij", x["q"], x["match"], x["k"]) @ x["v"],
    "deformable": deformable,
    "block_summaries": block_summaries,
    "chosen_blocks": chosen_blocks,
    "stack": stack,
    "lmu": lmu,
    "pooling": pooling,
    "uniform": lambda x: (x["x"] + x["x"].mean(1, keepdim=True)) / 2,
    "constant_map": lambda x: x["w"].softmax(-1) @ x["x"],
    "position_sum": lambda x: x["x"] * (x["w"].tril() @ x["x"]),
    "token_mlp": lambda x: x["w2"] @ F.gelu(x["w1"] @ x["x"] + x["b1"][:, None]) + x["b2"][:, None],
    "tempered": lambda x: attend(score(x) / 2, x["v"]),
    "key_bias": lambda x: attend(score(x) + x["bias"][:, None, None], x["v"]),
    "residual_scores": residual_scores,
    "additive_map": additive_map,
    "contextual": contextual,
    "low_rank_pooling": low_rank_pooling,
    "polar": polar,
    "relative_grid": relative_grid,
    "reference_branch": reference_branch,
    "latent_alignment": latent_alignment,
    "diversity": diversity,
    "self_and_cross": self_and_cross,
    "two_values": lambda x: (attend(score(x), x["v"]), attend(score(x), x["u"])),
    "channel_gate": channel_gate,
    "split_gate": split_gate,
    "context_pool": lambda x: attend((x["w"][:, None] @ x["x"].mT) / math.sqrt(x["x"].shape[-1]), x["x"])[:, :, 0],
    "log2_weights": lambda x: 2 ** (-(-2 * score(x).softmax(-1).log2()).round().clamp(max=15) / 2) @ x["v"],
    "map_gate": lambda x: x["x"] * (1 + x["a"].softmax(-1)[..., None]),
    "scale_gate": lambda x: (x["a"].softmax(1)[..., None] * x["x"]).sum(1),
    "place_gate": lambda x: x["x"] * (x["x"] @ x["w"] + x["bias"]).sigmoid(),
}


def inputs(name: str) -> X:
    """Drawn, but words are one-hot, maps lie one after the other, and sinks are visual."""
    c = einfuse.compile(name).cascade
    x = {n: t for n, t in example_inputs(c, torch.float64, 2, SHAPE).items() if isinstance(t, Tensor)}
    if name.startswith("program"):
        x |= {n: F.one_hot(x[n].argmax(-1), x[n].shape[-1]).double() for n in "qk"} | {"match": (x["match"] > 0.3).double()}
    if name == "deformable":
        tables = {"rows": torch.tensor([3, 2]), "columns": torch.tensor([2, 3]), "start": torch.tensor([0, 6])}
        places = {n: 2 * torch.randn(2, 2, NQ, 6, dtype=torch.float64) for n in "yxa"}
        x |= places | {n: t.int() for n, t in tables.items()} | {"v": torch.randn(2, 2, 12, 5, dtype=torch.float64)}
    if name == "sink_redistribution":
        x["sink"] &= x["visual"]
    if name == "paged":
        x["length"] = torch.tensor([16, 11])
    if name == "lmu":
        x["a"] = x["a"] / 4
    if name == "live_or_all":
        x["live"][:, 3] = False
    return x


@pytest.mark.parametrize("name", FORMULAS)
def test_spec_and_tiles_against_the_formula(name: str) -> None:
    """The oracle beside the formula; the lowered kernels in float64 by the tiled torch back end beside both, with gradients by autograd."""
    attention = einfuse.compile(name, backend="torch")
    x = {n: t.requires_grad_(t.is_floating_point()) for n, t in inputs(name).items()}
    results = []
    for run in (FORMULAS[name], lambda x: attention.reference(**x), lambda x: attention(**x)):
        out = run(x)
        outs = out if isinstance(out, tuple) else (out,)
        generator = torch.Generator().manual_seed(0)
        loss = sum((o * torch.randn(o.shape, generator=generator)).sum() for o in outs)
        assert isinstance(loss, Tensor)
        leaves = [t for t in x.values() if t.requires_grad]
        results.append([*outs, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)])
    for truth, oracle, found in zip(*results, strict=True):
        torch.testing.assert_close(oracle, truth, rtol=1e-5, atol=1e-5)  # the epsilons of roots and norms
        torch.testing.assert_close(found, oracle, rtol=1e-7, atol=1e-7)  # numbers of the spec are float32 in kernels


@pytest.mark.slow
def test_whole_numbers_over_keys_and_features_are_packed_as_such() -> None:
    """A table of overlaps of keys and blocks, computed while packing: a failed build would warn, and warnings are errors."""
    attention = einfuse.compile("block_summaries")
    assert einfuse.verify(attention, backends=["cpu"], dtypes=["float32"], brief=True).ok
