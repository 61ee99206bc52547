"""Specs of newer scores, gates and weights beside formulas from their papers, which go token by token where the papers do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from formulas import SHAPE, Formula, X, check, drawn
from torch import Tensor
from torch.nn import functional as F

N = SHAPE.queries
ROW, COLUMN = torch.arange(N)[:, None], torch.arange(N)
LOW = ROW >= COLUMN


def attend(s: Tensor, v: Tensor, seen: Tensor = LOW) -> Tensor:
    return s.masked_fill(~seen, -math.inf).softmax(-1) @ v


def score(x: X) -> Tensor:
    return x["q"] @ x["k"].mT / math.sqrt(x["q"].shape[-1])


def decay(g: Tensor) -> Tensor:
    """The logarithm of the product of sigmoid(g) from behind j to i, [..., i, j]."""
    c = F.logsigmoid(g).cumsum(-1)
    return c[..., :, None] - c[..., None, :]


def multi_token(x: X) -> Tensor:
    """By torch's convolution (of the flipped kernel, which torch does not flip)."""
    s = score(x).masked_fill(~LOW, 0)
    padded = F.pad(s, (2, 2, 2, 0))
    return attend(F.conv2d(padded, x["w"].flip(-1, -2)[:, None], groups=s.shape[1]), x["v"])


def adaptive_temperature(x: X) -> Tensor:
    s = score(x)
    p = s.softmax(-1)
    h = -(p * p.log()).sum(-1, keepdim=True)
    poly = sum(c * h**n for n, c in enumerate((-1.791, 4.917, -2.3, 0.481, -0.037)))
    assert isinstance(poly, Tensor)
    return (torch.where(h > 0.5, poly.clamp(min=1), 1) * s).softmax(-1) @ x["v"]


def differential_v2(x: X) -> Tensor:
    a, b = (attend(score({"q": x["q"][:, :, n], "k": x["k"]}), x["v"]) for n in (0, 1))
    return a - x["l"].sigmoid()[..., None] * b


def qk_norm(x: X) -> Tensor:
    q, k = (F.rms_norm(x[n], (4,), x["g" + n], 1e-6) for n in "qk")
    return attend(score({"q": q, "k": k}), x["v"], LOW & (ROW - COLUMN < 4))


def tropical(x: X) -> Tensor:
    apart = x["q"][..., :, None, :] - x["k"][..., None, :, :]
    return (apart.amin(-1) - apart.amax(-1))[..., None].add(x["v"][..., None, :, :]).amax(-2)


def polynomial(x: X) -> Tensor:
    w = score(x) ** 2 * (decay(x["g"]) * LOW).exp() * LOW
    return w @ x["v"] / (w.sum(-1, keepdim=True) + 1e-6)


def log_linear(x: X) -> Tensor:
    """Spans by removing the lowest bit again and again, as a Fenwick tree does."""
    w = torch.zeros_like(score(x))
    raw = x["q"] @ x["k"].mT * (decay(x["g"]) * LOW).exp()
    for i in range(N):
        w[..., i, i] = x["level"][..., i, 0] * raw[..., i, i]
        end = i
        while end > 0:
            bit = end & -end
            n = bit.bit_length()
            if n < x["level"].shape[-1]:
                w[..., i, end - bit : end] = x["level"][..., i, n, None] * raw[..., i, end - bit : end]
            end -= bit
    return w @ x["v"]


def stick_breaking(x: X) -> Tensor:
    share, rows = score(x).sigmoid(), []
    for i in range(N):
        left, row = torch.ones(()), torch.zeros_like(x["v"][..., 0, :])
        for j in reversed(range(i)):
            row = row + (share[..., i, j] * left)[..., None] * x["v"][..., j, :]
            left = left * (1 - share[..., i, j])
        rows.append(row)
    return torch.stack(rows, -2)


def path(x: X) -> Tensor:
    unit = x["w"] / (x["w"].square().sum(-1, keepdim=True) + 1e-6).sqrt()
    s = torch.zeros_like(score(x))
    for i in range(N):
        turn = torch.eye(4, dtype=torch.float64).expand(2, 2, 4, 4)
        for j in reversed(range(i + 1)):
            s[..., i, j] = (x["q"][..., i, None, :] @ turn @ x["k"][..., j, :, None])[..., 0, 0] / 2
            w = unit[..., j, :]
            turn = turn @ (torch.eye(4) - 2 * x["beta"][..., j, None, None].sigmoid() * w[..., :, None] * w[..., None, :])
    return attend(s, x["v"])


def selective(x: X) -> Tensor:
    """Running sums along the queries of what the first head says."""
    s = score(x)
    said = (s[:, :1].relu() * (LOW & ~torch.eye(N, dtype=torch.bool))).clone()
    said[..., 0] = 0
    return attend(s - F.pad(said.cumsum(-2), (0, 0, 1, -1)), x["v"])


def with_sink(w: Tensor, sink: Tensor, v: Tensor, eps: float) -> Tensor:
    """The sink is a key without a value: the column before all others."""
    first = sink[:, None, None].expand(*w.shape[:-1], 1)
    all_of = torch.cat([first, w * LOW], -1)
    return (all_of.relu() / (all_of.abs().sum(-1, keepdim=True) + eps))[..., 1:] @ v


CASES: dict[str, Formula] = {
    "selective": selective,
    "softpick_sink": lambda x: with_sink(score(x).exp() - 1, x["sink"].exp() - 1, x["v"], 0),
    "relu2_sink": lambda x: with_sink(score(x).relu() ** 2, x["sink"].relu() ** 2, x["v"], 1e-6),
    "softcap_window": lambda x: attend(50 * (score(x) / 50).tanh(), x["v"], LOW & (ROW - COLUMN < 3)),
    "sink_window": lambda x: (
        torch.cat(
            [x["sink"][:, None, None].expand(2, 2, N, 1), score(x).masked_fill(~LOW | (ROW - COLUMN >= 3), -math.inf)], -1
        ).softmax(-1)[..., 1:]
        @ x["v"]
    ),
    "value_residual": lambda x: (
        x["own"][:, None, None] * attend(score(x), x["v"]) + attend(score(x), x["early"][:, None, None] * x["first"])
    ),
    "forgetting": lambda x: attend(score(x) + decay(x["f"]), x["v"]),
    "multi_token": multi_token,
    "scalable": lambda x: attend(score(x) * x["gain"][:, None, None] * torch.log(ROW + 1.0), x["v"]),
    "adaptive_temperature": adaptive_temperature,
    "laser": lambda x: attend(score(x), x["v"].exp()).log(),
    "differential_v2": differential_v2,
    "gated_output": lambda x: attend(score(x), x["v"]) * x["g"].sigmoid(),
    "qk_norm": qk_norm,
    "tropical": tropical,
    "polynomial": polynomial,
    "log_linear": log_linear,
    "stick_breaking": stick_breaking,
    "path": path,
}


@pytest.mark.parametrize("name", CASES)
def test_spec_and_tiles_against_the_formula(name: str) -> None:
    settings: dict[str, dict[str, Any]] = {
        "qk_norm": {"window": 4},
        "softcap_window": {"window": 3},
        "sink_window": {"window": 3},
    }
    check(name, CASES[name], drawn(name), **settings.get(name, {}))
