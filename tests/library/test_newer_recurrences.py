"""Newer recurrences and latent heads beside formulas from their papers, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from formulas import SHAPE, Formula, X, check, drawn
from torch import Tensor
from torch.nn import functional as F

from einfuse.runtime.verify import Shape

N = SHAPE.queries
LOW = torch.ones(N, N, dtype=torch.bool).tril()


def attend(s: Tensor, v: Tensor) -> Tensor:
    return s.masked_fill(~LOW, -math.inf).softmax(-1) @ v


def unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


def along(start: Tensor, step: Callable[[Tensor, int], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The rows of all tokens, and the last state."""
    state, rows = start, []
    for t in range(N):
        state, row = step(state, t)
        rows.append(row)
    return torch.stack(rows, -2), state


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor, write: Tensor, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """S <- (I - beta k k^T) diag(keep) S + beta k v^T, keep [..., N, D]."""
    eye = torch.eye(k.shape[-1], dtype=k.dtype)

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        key, b = k[..., t, :], write[..., t, None, None]
        state = (eye - b * outer(key, key)) @ (keep[..., t, :, None] * state) + b * outer(key, v[..., t, :])
        return state, (q[..., t, None, :] @ state)[..., 0, :]

    return along(torch.zeros(*v.shape[:2], k.shape[-1], v.shape[-1], dtype=k.dtype) if start is None else start, step)


def kda(x: X) -> tuple[Tensor, Tensor]:
    rate = x["log_a"].exp()[:, None, None] * F.softplus(x["g"] + x["bias"][:, None])
    read = unit(x["q"]) / 2
    return delta_rule(read, unit(x["k"]), x["v"], torch.exp(-rate), x["beta"].sigmoid(), x.get("initial"))


def gated_delta_net(x: X) -> Tensor:
    q, k = (unit(x[n]).repeat_interleave(2, 1) for n in "qk")
    keep = torch.exp(-x["log_a"].exp()[:, None] * F.softplus(x["a"] + x["bias"][:, None]))
    read, _ = delta_rule(q / 2, k, x["v"], keep[..., None].expand_as(k), x["beta"].sigmoid())
    return F.rms_norm(read, (5,), x["gain"], 1e-6) * F.silu(x["z"])


def rwkv7(x: X) -> Tensor:
    keep, r = torch.exp(-math.exp(-0.5) * x["g"].sigmoid()), unit(x["removal"])

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        remove = outer(x["a"][..., t, :].sigmoid() * r[..., t, :], r[..., t, :])
        k, v, q = (x[n][..., t, :] for n in "kvq")
        state = (torch.diag_embed(keep[..., t, :]) - remove) @ state + outer(k, v)
        return state, (q[..., None, :] @ state)[..., 0, :] + (q * x["u"] * k).sum(-1, keepdim=True) * v

    return along(torch.zeros(2, 2, 4, 5, dtype=torch.float64), step)[0]


def hgrn2(x: X) -> Tensor:
    f = 0.2 + 0.8 * x["g"].sigmoid()

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = f[..., t, :, None] * state + outer(1 - f[..., t, :], x["v"][..., t, :])
        return state, (x["q"][..., t, None, :] @ state)[..., 0, :]

    return along(torch.zeros(2, 2, 4, 5, dtype=torch.float64), step)[0]


def gated_slots(x: X) -> Tensor:
    a = x["g"].sigmoid()[..., None]
    keys, values, rows = torch.zeros(()), torch.zeros(()), []
    for t in range(N):
        keys = a[:, :, t] * keys + (1 - a[:, :, t]) * x["k"][:, :, t, None]
        values = a[:, :, t] * values + (1 - a[:, :, t]) * x["v"][:, :, t, None]
        rows.append(((keys @ x["q"][:, :, t, :, None])[..., 0].softmax(-1)[..., None] * values).sum(-2))
    return torch.stack(rows, 2)


def longhorn(x: X) -> Tensor:
    """The argmin of |S - S'|^2 + beta (S k - x)^2 for every channel, by an inverse, of which the decay keeps the diagonal."""

    def step(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        k, beta = x["k"][:, t], x["beta"][:, t].sigmoid()
        eye = torch.eye(k.shape[-1], dtype=torch.float64)
        inverse = torch.linalg.inv(eye + beta[..., None, None] * outer(k, k)[:, None])
        state = torch.diagonal(inverse, dim1=-2, dim2=-1) * state
        state = state + (inverse @ k[:, None, :, None])[..., 0] * (beta * x["x"][:, t])[..., None]
        return state, (state * x["q"][:, t, None]).sum(-1)

    return along(torch.zeros(2, x["x"].shape[-1], x["k"].shape[-1], dtype=torch.float64), step)[0]


def delta_product(x: X) -> Tensor:
    """As the delta rule on twice as many tokens, of which every second is read."""
    k, v, beta = unit(x["k"]).flatten(2, 3), x["v"].flatten(2, 3), 2 * x["beta"].sigmoid().flatten(2, 3)
    state, rows = torch.zeros(2, 2, 4, 5, dtype=torch.float64), []
    for t in range(2 * N):
        key = k[:, :, t]
        error = v[:, :, t] - (key[..., None, :] @ state)[..., 0, :]
        state = state + beta[:, :, t, None, None] * outer(key, error)
        if t % 2:
            rows.append((x["q"][:, :, t // 2, None] @ state)[..., 0, :])
    return torch.stack(rows, 2)


def mlstm(x: X) -> Tensor:
    """Token by token, as the paper's recurrence with its stabiliser."""
    c, n, m = (
        torch.zeros(2, 2, 4, 5, dtype=torch.float64),
        torch.zeros(2, 2, 4, dtype=torch.float64),
        torch.full((2, 2), -math.inf),
    )
    rows = []
    for t in range(N):
        q, k, v = (x[name][:, :, t] for name in "qkv")
        log_f = F.logsigmoid(x["f"][:, :, t])
        new = torch.maximum(log_f + m, x["g"][:, :, t])
        f, i = torch.exp(log_f + m - new)[..., None], torch.exp(x["g"][:, :, t] - new)[..., None]
        c, n, m = f[..., None] * c + i[..., None] * outer(k / 2, v), f * n + i * k / 2, new
        mass = torch.maximum((n * q).sum(-1).abs(), torch.exp(-m))
        rows.append((q[..., None, :] @ c)[..., 0, :] / mass[..., None])
    return torch.stack(rows, 2)


def latent(x: X) -> Tensor:
    """With the keys and values of every head written out."""
    parts = (torch.einsum("bjc,hcd->bhjd", x["latent"], x["wk"]), x["kr"][:, None].expand(-1, x["q"].shape[1], -1, -1))
    q, k = torch.cat([x["q"], x["qr"]], -1), torch.cat(parts, -1)
    return attend(q @ k.mT / math.sqrt(q.shape[-1]), torch.einsum("bjc,hce->bhje", x["latent"], x["wv"]))


def grouped_latent(x: X) -> Tensor:
    c = x["latent"].repeat_interleave(2, 1)
    q, k = torch.cat([x["q"], x["qr"]], -1), torch.cat([c, x["kr"][:, None].expand(-1, 4, -1, -1)], -1)
    return attend(q @ k.mT / math.sqrt(q.shape[-1]), c)


def grouped_tied(x: X) -> Tensor:
    kv = x["kv"].repeat_interleave(2, 1)
    k = torch.cat([kv[..., :2], x["kr"][:, None].expand(-1, 4, -1, -1)], -1)
    return attend(x["q"] @ k.mT / 2, kv)


def tensor_product(x: X) -> Tensor:
    q, k, v = (torch.einsum("birh,bird->bhid", x["a" + n], x["b" + n]) / x["a" + n].shape[2] for n in "qkv")
    return attend(q @ k.mT / math.sqrt(q.shape[-1]), v)


CASES: dict[str, Formula] = {
    "kda": kda,
    "gated_delta_net": gated_delta_net,
    "rwkv7": rwkv7,
    "hgrn2": hgrn2,
    "gated_slots": gated_slots,
    "longhorn": longhorn,
    "delta_product": delta_product,
    "mlstm": mlstm,
    "mla": latent,
    "mla_absorbed": latent,
    "grouped_latent": grouped_latent,
    "grouped_tied": grouped_tied,
    "tensor_product": tensor_product,
}
GROUPED = Shape(2, 4, N, N, (4, 5, 3), 2)


@pytest.mark.parametrize("name", CASES)
def test_spec_and_tiles_against_the_formula(name: str) -> None:
    shape = GROUPED if name in ("gated_delta_net", "grouped_latent", "grouped_tied") else SHAPE
    check(name, CASES[name], drawn(name, shape))
