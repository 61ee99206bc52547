"""Later choices, memories and windows beside formulas from their papers: lists, blocks, learning states, firing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from formulas import SHAPE, Formula, X, check, drawn
from torch import Tensor
from torch.nn import functional as F

from einfuse.runtime.verify import Shape

N = SHAPE.queries
ROW, COLUMN = torch.arange(N)[:, None], torch.arange(N)
LOW = ROW >= COLUMN


def attend(s: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    return s.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0) @ v


def score(x: X) -> Tensor:
    return x["q"] @ x["k"].mT / math.sqrt(x["q"].shape[-1])


def best(t: Tensor, n: int) -> Tensor:
    """Is an entry among the n largest of its row?"""
    order = t.sort(dim=-1, descending=True, stable=True).indices[..., :n]  # equal values in their order
    return torch.zeros_like(t, dtype=torch.bool).scatter(-1, order, True)


def kept_weights(x: X) -> Tensor:
    p = score(x).softmax(-1)
    return (p * best(p, 4)) @ x["v"]


def low_rank_mask(x: X) -> Tensor:
    c = (x["qc"] @ (x["kc"].mT @ x["pn"]) / math.sqrt(2)).softmax(-1)
    s = (c * best(c, 2)) @ F.threshold(x["pb"].abs(), 0.02, 0.0).mT
    return attend(score(x), x["v"], best(s, 4) | (ROW == 0))


def nearest_region(x: X) -> Tensor:
    """Region after region, gathering the one that agrees most."""
    parts: list[Tensor] = [x[n].unflatten(2, (-1, 4)) for n in "qkv"]
    q, k, v = parts
    at = torch.einsum("bhxrd,bhzrd->bhxz", q, k).argmax(-1)
    pick = torch.arange(2)[:, None, None], torch.arange(2)[:, None], at
    return ((q @ k[pick].mT).softmax(-1) @ v[pick]).flatten(2, 3)


def sparq(x: X) -> Tensor:
    q, k = x["q"], x["k"]
    kept = q * best(q.abs(), 3)
    share = kept.abs().sum(-1, keepdim=True) / q.abs().sum(-1, keepdim=True)
    guess = (kept @ k.mT / (q.shape[-1] * share).sqrt()).softmax(-1)
    seen = best(guess, 4)
    a = (guess * seen).sum(-1, keepdim=True)
    return a * attend(score(x), x["v"], seen) + (1 - a) * x["v"].mean(2, keepdim=True)


def snapkv(x: X) -> Tensor:
    votes = score(x)[..., -3:, :].masked_fill(~LOW[-3:], -math.inf).softmax(-1).sum(-2)
    votes = F.max_pool1d(votes, 3, 1, 1)[..., :-3]
    seen = torch.cat([best(votes, 4), torch.ones(2, 2, 3, dtype=torch.bool)], -1)
    return attend(score(x), x["v"], seen[..., None, :] & LOW)


def alike_blocks(x: X) -> Tensor:
    """Blocks one after the other; the one that crosses the mass is left out."""
    k = x["k"] - x["k"].mean(2, keepdim=True)
    blocks = {n: t.split(4, 2) for n, t in (("q", x["q"]), ("k", k))}
    unit = {n: [t / (t.square().sum(-1, keepdim=True) + 1e-6).sqrt() for t in ts] for n, ts in blocks.items()}
    like = {n: torch.stack([(t @ t.mT).mean((-1, -2)) for t in ts], -1) > 0.3 for n, ts in unit.items()}
    mean = {n: torch.stack([t.mean(2) for t in ts], 2) for n, ts in blocks.items()}
    s = (mean["q"] @ mean["k"].mT / math.sqrt(x["q"].shape[-1])).masked_fill(~like["k"][:, :, None], -math.inf)
    p, order = s.softmax(-1).nan_to_num(0).sort(-1, descending=True)
    count = (p.cumsum(-1) <= 0.6).sum(-1, keepdim=True).clamp(min=1)
    chosen = torch.zeros_like(s, dtype=torch.bool).scatter(-1, order, torch.arange(s.shape[-1]).expand(s.shape) < count)
    chosen = chosen | ~like["k"][:, :, None] | ~like["q"][..., None]
    return attend(score(x), x["v"], chosen[..., ROW // 4, COLUMN // 4])


def integrate_and_fire(x: X) -> Tensor:
    """Frame after frame, as in the published loop; what is left at the end is the last token."""
    out = []
    for h, a in zip(x["x"], x["a"], strict=True):
        total, held, fired = torch.zeros(()), torch.zeros(h.shape[-1]), []
        for t in range(len(a)):
            if total + a[t] < 1:
                total, held = total + a[t], held + a[t] * h[t]
            else:
                fired.append(held + (1 - total) * h[t])
                total = total + a[t] - 1
                held = total * h[t]
        fired.append(held)
        fired += [torch.zeros_like(held)] * (6 - len(fired))
        out.append(torch.stack(fired[:6]))
    return torch.stack(out)


def padded_window(x: X) -> Tensor:
    """By unfolding: what lies outside is 0, and is counted."""
    q, k, v = (x[n].mT.flatten(0, 1).unflatten(-1, (5, 5)) for n in "qkv")
    near = [F.unfold(t, 3, 2, 2).unflatten(1, (-1, 9)) for t in (k, v)]
    p = (torch.einsum("bdn,bdrn->brn", q.flatten(2), near[0]) / math.sqrt(q.shape[1])).softmax(1)
    out: Tensor = torch.einsum("brn,bern->bne", p, near[1]).unflatten(0, (2, 2))
    return out


def channel_root(x: X) -> Tensor:
    s = x["q"] @ x["k"].mT / math.sqrt(x["k"].shape[2])
    return (s.sign() * (s.abs() + 1e-5).sqrt()).softmax(-1) @ x["v"]


def titans(x: X) -> Tensor:
    moving, memory, rows = torch.zeros(2, 2, 4, 5, dtype=torch.float64), torch.zeros(2, 2, 4, 5, dtype=torch.float64), []
    for t in range(N):
        k, v, q = (x[n][:, :, t] for n in "kvq")
        eta, theta, keep = (x[n][:, :, t, None, None].sigmoid() for n in ("eta", "theta", "keep"))
        gradient = k[..., None] * ((k[..., None, :] @ memory)[..., 0, :] - v)[..., None, :]
        moving = eta * moving - theta * gradient
        memory = keep * memory + moving
        rows.append((q[..., None, :] @ memory)[..., 0, :])
    return torch.stack(rows, 2)


def ttt_linear(x: X) -> Tensor:
    """The inner gradient by autograd."""
    state, rows = torch.zeros(2, 2, x["q"].shape[-1], x["q"].shape[-1], dtype=torch.float64), []

    def norm(z: Tensor) -> Tensor:
        return F.layer_norm(z, z.shape[-1:], eps=1e-6) * x["g"] + x["c"]

    for t in range(N):
        q, k, v = (x[n][:, :, t] for n in "qkv")
        if not state.requires_grad:
            state = state.requires_grad_()
        loss = (norm((k[..., None, :] @ state)[..., 0, :]) - (v - k)).square().sum() / 2
        (gradient,) = torch.autograd.grad(loss, state, create_graph=True)
        state = state - x["rate"][:, :, t, None, None].sigmoid() * gradient
        rows.append(q + norm((q[..., None, :] @ state)[..., 0, :]))
    return torch.stack(rows, 2)


def mamba3(x: X) -> Tensor:
    q, k = (x[n].repeat_interleave(x["x"].shape[1] // x[n].shape[1], 1) for n in "qk")
    step, part = F.softplus(x["dt"]), x["mix"].sigmoid()
    keep = torch.exp(-step * x["log_a"].exp()[:, None])
    state, last, rows = torch.zeros(()), torch.zeros(()), []
    for t in range(N):
        new = k[:, :, t, :, None] * x["x"][:, :, t, None]
        state = keep[:, :, t, None, None] * (state + ((1 - part) * step)[:, :, t, None, None] * last)
        state = state + (part * step)[:, :, t, None, None] * new
        last = new
        rows.append((q[:, :, t, None] @ state)[..., 0, :])
    return torch.stack(rows, 2)


def infini(x: X) -> Tensor:
    """Segment after segment, with the memory and its normaliser as sums."""
    f = {n: F.elu(x[n]) + 1 for n in "qk"}
    out, gate = [], x["g"].sigmoid()[:, None, None]
    for start in range(0, N, 4):
        own = slice(start, start + 4)
        local = attend(score(x)[..., own, own], x["v"][:, :, own], LOW[own, own])
        memory, mass = f["k"][:, :, :start].mT @ x["v"][:, :, :start], f["k"][:, :, :start].sum(2)
        read = f["q"][:, :, own] @ memory / ((f["q"][:, :, own] @ mass[..., None]) + 1e-6)
        out.append(gate * read + (1 - gate) * local)
    return torch.cat(out, 2)


CASES: dict[str, tuple[Formula, Shape, dict[str, Any]]] = {
    "kept_weights": (kept_weights, SHAPE, {}),
    "low_rank_mask": (low_rank_mask, SHAPE, {}),
    "nearest_region": (nearest_region, Shape(2, 2, 8, 12, (4, 5), 1), {}),
    "sparq": (sparq, SHAPE, {}),
    "snapkv": (snapkv, SHAPE, {}),
    "alike_blocks": (alike_blocks, Shape(2, 2, N, N, (2, 5), 1), {"mass": 0.6, "sim": 0.3}),
    "integrate_and_fire": (integrate_and_fire, SHAPE, {}),
    "padded_window": (padded_window, SHAPE, {"dilation": 2}),
    "channel_root": (channel_root, SHAPE, {}),
    "titans": (titans, SHAPE, {}),
    "ttt_linear": (ttt_linear, SHAPE, {}),
    "mamba3": (mamba3, Shape(2, 4, N, N, (4, 5), 2), {}),
    "infini": (infini, SHAPE, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_spec_and_tiles_against_the_formula(name: str) -> None:
    formula, shape, params = CASES[name]
    x = drawn(name, shape)
    if name == "integrate_and_fire":
        x["a"] = x["a"].sigmoid()
    check(name, formula, x, **params)
