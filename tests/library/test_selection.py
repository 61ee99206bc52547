"""Specs that choose what they read, beside independent formulas: values, gradients and choices, by the oracle and by kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import einfuse
from einfuse.ir.passes.choose import Scores

X = dict[str, Tensor]
NQ = NK = 21
B, H, D, E = 2, 2, 8, 5


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def qkv(*more: int) -> X:
    return {"q": draw(B, H, *more, NQ, D), "k": draw(B, H, NK, D), "v": draw(B, H, NK, E)}


def order(scores: Tensor, exists: Tensor | None = None) -> Tensor:
    """All coordinates, best first; those that do not exist last."""
    kept = scores if exists is None else scores.masked_fill(~exists, -math.inf)
    return kept.detach().sort(dim=-1, descending=True, stable=True).indices


def has(scores: Tensor, count: int, exists: Tensor | None = None) -> Tensor:
    """Is a coordinate among the best ``count`` that exist?"""
    exists = torch.ones_like(scores, dtype=torch.bool) if exists is None else exists.expand(scores.shape)
    rank = order(scores, exists).argsort(-1)
    return (rank < count) & exists


def attend(s: Tensor, seen: Tensor, v: Tensor) -> Tensor:
    return s.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0) @ v


def product(x: X) -> Tensor:
    return x["q"] @ x["k"].mT / math.sqrt(D)


ROW, J = torch.arange(NQ)[:, None], torch.arange(NK)
LOW = ROW >= J
W = (NK + 3) // 4
BLOCKS = torch.arange(W)
OWN = ROW // 4


def means(x: Tensor, size: int = 4) -> Tensor:
    """The mean of every block of tokens, of a short last one too."""
    return torch.stack([part.mean(-2) for part in x.split(size, -2)], -2)


def nsa_selected(x: X) -> Tensor:
    summaries = torch.arange(x["c"].shape[-2])
    seen = summaries * 2 + 3 <= ROW
    a = x["q"] @ x["c"][:, :, None].mT / math.sqrt(D)
    p = a.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0)
    shared = torch.tensor(
        [[len(set(range(2 * r, 2 * r + 4)) & set(range(4 * w, 4 * w + 4))) // 2 for w in range(W)] for r in summaries.tolist()]
    )
    given = (p @ shared.double()).sum(2)
    past = BLOCKS * 4 <= ROW
    forced = (BLOCKS == 0) | ((OWN - BLOCKS >= 0) & (OWN - BLOCKS < 2))
    chosen = has(given.masked_fill(forced, 1e30), 3, past)
    s = x["q"] @ x["k"][:, :, None].mT / math.sqrt(D)
    return attend(s, chosen[..., J // 4][:, :, None] & LOW, x["v"][:, :, None])


def moba(x: X) -> Tensor:
    g = (x["q"] @ means(x["k"]).mT).masked_fill(BLOCKS == OWN, 1e30)
    return attend(product(x), has(g, 3, BLOCKS <= OWN)[..., J // 4] & LOW, x["v"])


def index_scores(x: X) -> Tensor:
    return (x["wi"][..., None] * (x["qi"] @ x["ki"][:, None].mT).relu()).sum(1)


def sparse_tokens(x: X) -> tuple[Tensor, ...]:
    index = index_scores(x)
    seen = has(index, 5, LOW)
    p = (x["q"] @ x["k"][:, None].mT / math.sqrt(D)).masked_fill(~seen[:, None], -math.inf).softmax(-1)
    target = p.mean(1).detach()
    log = index.masked_fill(~seen, -math.inf).log_softmax(-1)
    kl = torch.where(seen, target * (target.clamp_min(1e-30).log() - log.masked_fill(~seen, 0)), 0).sum(-1)
    return p @ x["v"][:, None], kl


def hierarchical_tokens(x: X) -> Tensor:
    mean = means(x["ki"])
    coarse = (x["wi"][..., None] * (x["qi"] @ mean[:, None].mT).relu()).sum(1)
    chosen = has(coarse.masked_fill((BLOCKS == 0) | (BLOCKS == OWN), 1e30), 3, BLOCKS * 4 <= ROW)[..., J // 4] & LOW
    seen = has(index_scores(x), 5, chosen)
    return attend(x["q"] @ x["k"][:, None].mT / math.sqrt(D), seen[:, None], x["v"][:, None])


def video_blocks(x: X) -> Tensor:
    a = means(x["q"]) @ means(x["k"]).mT / math.sqrt(D)
    coarse = a.softmax(-1) @ means(x["v"])
    seen = has(a, 2)[..., torch.arange(NQ) // 4, :][..., J // 4]
    return attend(product(x), seen, x["v"]) + x["gate"] * coarse[:, :, torch.arange(NQ) // 4]


def mass_blocks(x: X) -> Tensor:
    a = (means(x["q"]) @ means(x["k"]).mT / math.sqrt(D)).masked_fill(BLOCKS > BLOCKS[:, None], -math.inf)
    value, at = a.softmax(-1).sort(dim=-1, descending=True, stable=True)
    keep = torch.zeros_like(value, dtype=torch.bool).scatter(-1, at, value.cumsum(-1) - value < 0.9)
    return attend(product(x), keep[..., torch.arange(NQ) // 4, :][..., J // 4] & LOW, x["v"])


def quest(x: X) -> Tensor:
    """Sequence by sequence, its pages one after the other."""
    outs = []
    for b, length in enumerate(x["length"].tolist()):
        pages = x["page"][b]
        k, v = (x[n][pages].flatten(0, 1).transpose(0, 1) for n in "kv")
        here = torch.arange(x["q"].shape[2])[:, None] + length - x["q"].shape[2]
        lo, hi = (x[n][pages].transpose(0, 1) for n in ("lo", "hi"))
        q = x["q"][b][:, :, None]
        bound = torch.maximum(q * lo[:, None], q * hi[:, None]).sum(-1)
        every = torch.arange(len(pages))
        chosen = has(bound.masked_fill(every == here // 4, 1e30), 3, every * 4 <= here)
        keys = torch.arange(k.shape[1])
        outs.append(attend(x["q"][b] @ k.mT / math.sqrt(D), chosen[..., keys // 4] & (keys <= here), v))
    return torch.stack(outs)


def multi_resolution(x: X) -> Tensor:
    mean = {n: means(x[n]) for n in "qkv"}
    a = mean["q"] @ mean["k"].mT / math.sqrt(D)
    exact: Tensor = has((a - a.amax(-1, keepdim=True)).flatten(-2), 5).unflatten(-1, a.shape[-2:])
    rows = torch.arange(x["q"].shape[-2]) // 4
    fine = (x["q"] @ x["k"].mT / math.sqrt(D)).exp() * exact[..., rows, :][..., torch.arange(x["k"].shape[-2]) // 4]
    sizes = torch.tensor([len(part) for part in torch.arange(x["k"].shape[-2]).split(4)])
    coarse = sizes * a[..., rows, :].exp() * ~exact[..., rows, :]
    return (fine @ x["v"] + coarse @ mean["v"]) / (fine.sum(-1) + coarse.sum(-1))[..., None]


def clusters(x: X) -> Tensor:
    unit = {n: torch.nn.functional.normalize(x[n], dim=-1) for n in "qk"}
    queries, keys = (has(x["centre"] @ unit[n].mT, 6) for n in "qk")
    seen = queries[..., None] & keys[..., None, :] & LOW
    a = attend(product(x)[:, :, None], seen, x["v"][:, :, None])
    return (a * queries[..., None]).sum(2) / queries.sum(2).clamp_min(1)[..., None]


def hash_chunks(x: X) -> Tensor:
    rounds, n = x["turn"].shape[0], x["x"].shape[2]
    turned = torch.einsum("bhid,rdz->bhriz", x["x"], x["turn"])
    bucket = torch.cat([turned, -turned], -1).argmax(-1)
    places = (torch.arange(rounds)[:, None] * 1000 + bucket).flatten(-2).sort(dim=-1, stable=True).indices
    t = places % n
    unit = torch.nn.functional.normalize(x["x"], dim=-1)

    def pick(y: Tensor) -> Tensor:
        return y.gather(2, t[..., None].expand(*t.shape, y.shape[-1]))

    s = pick(x["x"]) @ pick(unit).mT / math.sqrt(D)
    chunk = torch.arange(rounds * n) // 4
    back = (chunk[:, None] - chunk) % (rounds * n // 4)
    near = (back <= 1) & (t[..., None, :] <= t[..., None])
    s = torch.where(t[..., None] == t[..., None, :], -5e4, s).masked_fill(~near, -math.inf)
    a, mass = s.softmax(-1) @ pick(x["v"]), s.logsumexp(-1)
    undo = places.argsort(-1)
    a = a.gather(2, undo[..., None].expand_as(a)).unflatten(2, (rounds, n))
    out: Tensor = (mass.gather(2, undo).unflatten(2, (rounds, n)).softmax(2)[..., None] * a).sum(2)
    return out


def vertical_slash(x: X) -> Tensor:
    last = torch.arange(NQ - 4, NQ)[:, None]
    p = (x["q"][:, :, -4:] @ x["k"].mT / math.sqrt(D)).masked_fill(last < J, -math.inf).softmax(-1)
    slope = torch.stack([(p * (last - J == n)).sum((-2, -1)) for n in range(NK)], -1)
    columns = has(p.sum(-2).masked_fill(J < 1, 1e30), 3)
    slopes = has(slope.masked_fill(J < 2, 1e30), 4)
    seen = columns[..., None, :] | slopes[..., (ROW - J).clamp_min(0)]
    return attend(product(x), seen & LOW, x["v"])


def expert_tokens(x: X) -> Tensor:
    taken = has(x["gate"], 6)
    seen = taken[..., :, None] & taken[..., None, :] & LOW
    return x["gate"].sigmoid()[..., None] * attend(product(x), seen, x["v"])


def heavy_hitters(x: X) -> Tensor:
    votes = product(x).masked_fill(~LOW, -math.inf).softmax(-1).sum(-2)
    return attend(product(x), LOW & ((ROW - J < 3) | has(votes, 4)[..., None, :]), x["v"])


def past_summaries(x: X) -> Tensor:
    return attend(product(x), torch.arange(9) * 2 + 3 <= ROW, x["v"])


def pooled_blocks(x: X) -> Tensor:
    summaries = torch.arange(x["c"].shape[-2])
    a = (x["q"] @ x["c"][:, :, None].mT / math.sqrt(D)).masked_fill(summaries * 2 + 3 > ROW, -math.inf)
    given = a.softmax(-1).nan_to_num(0).sum(2)  # a row without a summary gives none
    held = [[r for r in summaries.tolist() if {*range(2 * r, 2 * r + 4)} & {*range(4 * w, 4 * w + 4)}] for w in range(W)]
    pooled = torch.stack([given[..., r].amax(-1) if r else torch.zeros_like(given[..., 0]) for r in held], -1)
    forced = (BLOCKS == 0) | ((OWN - BLOCKS >= 0) & (OWN - BLOCKS <= 1))
    chosen = has(pooled.masked_fill(forced, 1e30), 4, BLOCKS <= OWN)
    s = x["q"] @ x["k"][:, :, None].mT / math.sqrt(D)
    return attend(s, chosen[..., J // 4][:, :, None] & LOW, x["v"][:, :, None])


def gated_blocks(x: X) -> tuple[Tensor, ...]:
    parts = x["k"].split(4, -2)
    pooled = [
        torch.stack([part.amax(-2) for part in parts], -2),
        torch.stack([part.amin(-2) for part in parts], -2),
        means(x["k"]),
    ]
    keys = torch.cat(pooled, -1) @ torch.cat([x["wh"], x["wl"], x["wm"]], -2)
    gate = means(x["q"]) @ x["wq"] @ keys.mT / math.sqrt(x["wq"].shape[-1])
    past = BLOCKS <= BLOCKS[:, None]
    chosen = has(gate.masked_fill(BLOCKS == BLOCKS[:, None], 1e30), 3, past)
    seen = chosen[..., torch.arange(NQ) // 4, :][..., J // 4] & LOW
    return attend(product(x), seen, x["v"]), gate.masked_fill(~past, -math.inf).softmax(-1)


def landmarks(x: X) -> Tensor:
    s, mark = product(x), J % 4 == 3
    far = has(s.masked_fill(~mark, -math.inf), 2, mark & (J // 4 < OWN))
    own = (J // 4 == OWN) & ~mark & LOW
    first = s.masked_fill(~(own | far), -math.inf).softmax(-1)
    p = first * own
    for w in range(NK // 4):
        tokens = J[(J // 4 == w) & ~mark]
        p[..., tokens] += (first * far)[..., 4 * w + 3, None] * s[..., tokens].softmax(-1)
    return p @ x["v"]


def sorted_blocks(x: X) -> Tensor:
    place = x["r"]
    for _ in range(3):
        place = place.log_softmax(-1).log_softmax(-2)
    weight, at = (t[..., torch.arange(NQ) // 4, :] for t in place.exp().max(-1, keepdim=True))
    moved = (weight * product(x)).masked_fill(J // 4 != at, -math.inf)
    p = torch.cat([moved, product(x).masked_fill(J // 4 != OWN, -math.inf)], -1).softmax(-1)
    return weight * (p[..., :NK] @ x["v"]) + p[..., NK:] @ x["v"]


def paged() -> X:
    pages = torch.stack([torch.randperm(9)[:5] for _ in range(B)])
    k = draw(9, 4, H, D)
    return {
        "q": draw(B, H, 3, D),
        "k": k,
        "v": draw(9, 4, H, E),
        "lo": k.amin(1),
        "hi": k.amax(1),
        "page": pages,
        "length": torch.tensor([19, 14]),
    }


def indexed() -> X:
    return {
        "q": draw(B, 3, NQ, D),
        "k": draw(B, NK, D),
        "v": draw(B, NK, E),
        "qi": draw(B, 2, NQ, 6),
        "ki": draw(B, NK, 6),
        "wi": draw(B, 2, NQ),
    }


CASES: dict[str, tuple[Callable[[X], Tensor | tuple[Tensor, ...]], Callable[[], X]]] = {
    "nsa_selected": (nsa_selected, lambda: qkv(3) | {"c": draw(B, H, 9, D)}),
    "moba": (moba, qkv),
    "sparse_tokens": (sparse_tokens, indexed),
    "hierarchical_tokens": (hierarchical_tokens, indexed),
    "video_blocks": (video_blocks, lambda: qkv() | {"gate": draw(B, H, NQ, E)}),
    "mass_blocks": (mass_blocks, qkv),
    "quest": (quest, paged),
    "multi_resolution": (multi_resolution, qkv),
    "clusters": (clusters, lambda: qkv() | {"centre": draw(H, 3, D)}),
    "hash_chunks": (hash_chunks, lambda: {"x": draw(B, H, 12, D), "v": draw(B, H, 12, E), "turn": draw(2, D, 3)}),
    "vertical_slash": (vertical_slash, qkv),
    "expert_tokens": (expert_tokens, lambda: qkv() | {"gate": draw(B, H, NK)}),
    "heavy_hitters": (heavy_hitters, qkv),
    "past_summaries": (past_summaries, lambda: {"q": draw(B, H, NQ, D), "k": draw(B, H, 9, D), "v": draw(B, H, 9, E)}),
    "pooled_blocks": (pooled_blocks, lambda: qkv(3) | {"c": draw(B, H, 9, D)}),
    "gated_blocks": (gated_blocks, lambda: qkv() | {n: draw(H, D, 6) for n in ("wq", "wh", "wl", "wm")}),
    "landmarks": (landmarks, qkv),
    "sorted_blocks": (sorted_blocks, lambda: qkv() | {"r": draw(B, H, W, W)}),
}


def inputs(name: str, seed: int) -> X:
    torch.manual_seed(seed)
    return CASES[name][1]()


def results(run: Callable[..., Tensor | tuple[Tensor, ...]], x: X) -> list[Tensor]:
    """Outputs, and the gradients of all floats along fixed directions."""
    x = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in x.items()}
    found = run(x)
    outs = found if isinstance(found, tuple) else (found,)
    generator = torch.Generator().manual_seed(0)
    loss = sum((o * torch.randn(o.shape, generator=generator).to(o)).sum() for o in outs)
    assert isinstance(loss, Tensor)
    leaves = [t for t in x.values() if t.requires_grad]
    return [*(o.detach() for o in outs), *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_the_oracle_is_the_formula(name: str, seed: int) -> None:
    attention, x = einfuse.compile(name), inputs(name, seed)
    for found, truth in zip(results(lambda x: attention.reference(**x), x), results(CASES[name][0], x), strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)  # the epsilon of a norm


@pytest.mark.parametrize(
    ("name", "backend"),
    [(n, "torch") for n in CASES]
    + [pytest.param(n, ("cpu", "triton")[k % 2], marks=pytest.mark.slow) for k, n in enumerate(CASES)],
)
def test_kernels_are_the_formula(name: str, backend: str) -> None:
    if backend == "triton":
        einfuse.runtime.backends.interpret_triton()
    attention = einfuse.compile(name, backend=backend)  # type: ignore[arg-type]
    if attention.selection is not None:
        steps = [s for s in attention.selection.chosen.steps if isinstance(s, Scores) and not s.whole]
        assert all(attention.selection.scorers[s.target] is not None for s in steps), "kernels compute what is ranked"
    x = {n: t.float() if t.is_floating_point() else t for n, t in inputs(name, 2).items()}
    wide = {n: t.double() if t.is_floating_point() else t for n, t in x.items()}
    for found, truth in zip(results(lambda x: attention(**x), x), results(CASES[name][0], wide), strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=2e-5, atol=2e-5)
