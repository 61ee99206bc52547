"""Softmax specs that no layer is built on, against their formulas in plain torch, in double precision with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import einfuse
from einfuse.runtime.verify import Shape, example_inputs

SHAPE = Shape(2, 4, 7, 9, (6, 5), 2)
NQ, NK = SHAPE.queries, SHAPE.keys
ROW, COLUMN = torch.arange(NQ)[:, None], torch.arange(NK)[None]
X = dict[str, Tensor]


def score(x: X) -> Tensor:
    return x["q"] @ x["k"].mT / math.sqrt(x["q"].shape[-1])


def weighted(x: X, s: Tensor, mask: Tensor | None = None) -> Tensor:
    return (s if mask is None else s.masked_fill(~mask, -math.inf)).softmax(-1) @ x["v"]


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def lse(x: X) -> tuple[Tensor, Tensor]:
    s = score(x).masked_fill(COLUMN > ROW, -math.inf)
    return s.softmax(-1) @ x["v"], s.logsumexp(-1)


FORMULAS: dict[str, tuple[Callable[[X], Any], dict[str, Any]]] = {
    "cosine": (lambda x: weighted(x, unit(x["q"]) @ unit(x["k"]).mT * x["tau"][:, None, None]), {}),
    "cross": (lambda x: weighted(x, score(x), x["pad"][:, None, None] if "pad" in x else None), {}),
    "gqa": (lambda x: weighted(x, score(x), COLUMN <= ROW + NK - NQ), {}),
    "lse": (lse, {}),
    "softcap": (lambda x: weighted(x, 3 * torch.tanh(score(x) / 3), COLUMN <= ROW), {"cap": 3.0}),
    "alibi_window": (
        lambda x: weighted(x, score(x) - x["slope"][:, None, None] * (ROW - COLUMN), (COLUMN <= ROW) & (ROW - COLUMN < 3)),
        {"window": 3},
    ),
    "relative_position": (lambda x: weighted(x, score(x) + x["table"][:, COLUMN - ROW + NQ - 1]), {}),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_spec_against_its_formula(name: str) -> None:
    formula, numbers = FORMULAS[name]
    attention = einfuse.compile(name, backend="torch")
    x = {n: t for n, t in example_inputs(attention.cascade, torch.float64, 1, SHAPE).items() if isinstance(t, Tensor)}
    x |= {"pad": torch.rand(2, NK) < 0.7} if name == "cross" else {}
    leaves = {n: t.requires_grad_() for n, t in x.items() if t.is_floating_point()}
    found = attention(**x, **numbers)
    wanted = formula({n: t.repeat_interleave(SHAPE.heads // t.shape[1], 1) if n in ("k", "v") else t for n, t in x.items()})
    pairs = list(zip(*(y if isinstance(y, tuple) else (y,) for y in (found, wanted)), strict=True))
    for f, w in pairs:
        torch.testing.assert_close(f, w)
    losses = [
        sum((y * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum() for y in side) for side in zip(*pairs, strict=True)
    ]
    gradients = [torch.autograd.grad(loss, list(leaves.values())) for loss in losses]  # type: ignore[arg-type]
    for f, w in zip(*gradients, strict=True):
        torch.testing.assert_close(f, w)
