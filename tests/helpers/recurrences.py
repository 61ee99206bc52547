"""The recurrences of the linear family in plain torch, token by token: what the tests compare with. Shares no code with the compiler."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import elu, softplus

Inputs = Mapping[str, Tensor]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


def _apply(x: Tensor, state: Tensor) -> Tensor:
    return (x[..., None, :] @ state)[..., 0, :]


def _run(
    x: Inputs, point: Callable[[Tensor, int], tuple[Tensor, Tensor]], keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor]:
    start = keys.new_zeros(*keys.shape[:-2], keys.shape[-1], values.shape[-1])
    state = x["initial"] if "initial" in x else start
    rows = []
    for t in range(keys.shape[-2]):
        state, row = point(state, t)
        rows.append(row)
    return torch.stack(rows, -2), state


def retention(x: Inputs) -> tuple[Tensor, Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    keep = torch.exp(-x["slope"].abs())[:, None, None]

    def point(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = keep * state + _outer(k[..., t, :], v[..., t, :])
        return state, _apply(q[..., t, :], state) / q.shape[-1] ** 0.5

    return _run(x, point, k, v)


def gla(x: Inputs) -> tuple[Tensor, Tensor]:
    q, k, v = x["q"], x["k"], x["v"]
    keep = torch.sigmoid(x["g"]) ** (1 / 16)

    def point(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = keep[..., t, :, None] * state + _outer(k[..., t, :], v[..., t, :])
        return state, _apply(q[..., t, :], state) / q.shape[-1] ** 0.5

    return _run(x, point, k, v)


def delta(x: Inputs) -> tuple[Tensor, Tensor]:
    return gated_delta({**x, "g": torch.full_like(x["beta"], 1e4)})


def gated_delta(x: Inputs) -> tuple[Tensor, Tensor]:
    q, v = x["q"], x["v"]
    k = x["k"] / (x["k"].square().sum(-1, keepdim=True) + 1e-6).sqrt()
    keep, write = torch.sigmoid(x["g"]), torch.sigmoid(x["beta"])
    eye = torch.eye(k.shape[-1], dtype=k.dtype)

    def point(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        key, b = k[..., t, :], write[..., t, None, None]
        state = keep[..., t, None, None] * ((eye - b * _outer(key, key)) @ state) + b * _outer(key, v[..., t, :])
        return state, _apply(q[..., t, :], state) / q.shape[-1] ** 0.5

    return _run(x, point, k, v)


def ssd(x: Inputs) -> tuple[Tensor, Tensor]:
    v, dt = x["x"], softplus(x["dt"])
    group = v.shape[1] // x["k"].shape[1]
    c, k = (x[n].repeat_interleave(group, 1) for n in ("c", "k"))
    keep = torch.exp(-dt * x["log_a"].exp()[:, None])

    def point(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = keep[..., t, None, None] * state + dt[..., t, None, None] * _outer(k[..., t, :], v[..., t, :])
        return state, _apply(c[..., t, :], state) + x["skip"][:, None] * v[..., t, :]

    return _run(x, point, k, v)


def rwkv6(x: Inputs) -> tuple[Tensor, Tensor]:
    r, k, v = x["r"], x["k"], x["v"]
    keep = torch.exp(-x["w"].exp())

    def point(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        new = _outer(k[..., t, :], v[..., t, :])
        row = _apply(r[..., t, :], state + x["u"][..., :, None] * new)
        return keep[..., t, :, None] * state + new, row

    return _run(x, point, k, v)


def mamba(x: Inputs) -> tuple[Tensor, Tensor]:
    v, dt = x["x"], softplus(x["dt"])
    keep = torch.exp(-dt[..., None] * x["log_a"].exp())

    def point(state: Tensor, t: int) -> tuple[Tensor, Tensor]:
        state = keep[:, t] * state + _outer(dt[:, t] * v[:, t], x["k"][:, t])
        return state, (state * x["c"][:, t, None, :]).sum(-1) + x["skip"] * v[:, t]

    return _run(x, point, v, x["k"])


# -- quadratic forms -------------------------------------------------------------------------------------------------------------


def _seen(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def linear_quadratic(x: Inputs) -> Tensor:
    weights = (elu(x["q"]) + 1) @ (elu(x["k"]) + 1).mT * _seen(x["q"].shape[-2])
    return weights @ x["v"] / (weights.sum(-1, keepdim=True) + 1e-6)


def performer_quadratic(x: Inputs) -> Tensor:
    fq, fk = (torch.exp(y @ x["w"].mT - y.square().sum(-1, keepdim=True) / 2) for y in (x["q"], x["k"]))
    weights = fq @ fk.mT * _seen(fq.shape[-2])
    return weights @ x["v"] / (weights.sum(-1, keepdim=True) + 1e-6)


def retention_quadratic(x: Inputs) -> Tensor:
    n = x["q"].shape[-2]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    decay = torch.exp(-x["slope"].abs()[:, None, None] * (i - j).clamp(min=0)) * _seen(n)
    return (x["q"] @ x["k"].mT * decay) @ x["v"] / math.sqrt(x["q"].shape[-1])


def retnet_quadratic(x: Inputs) -> Tensor:
    """With complex numbers: features d and d + D/2 are one, turned by place / 10000^(2d/D)."""
    width = x["q"].shape[-1]
    angle = x["place"].double()[:, None] * 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    turn = torch.polar(torch.ones_like(angle), angle)
    q, k = (torch.view_as_real(torch.complex(*x[n].chunk(2, -1)) * turn).transpose(-1, -2).flatten(-2) for n in "qk")
    return retention_quadratic({**x, "q": q, "k": k})


def packed_quadratic(x: Inputs) -> Tensor:
    n = x["q"].shape[-2]
    i, j = torch.arange(n)[:, None], torch.arange(n)[None, :]
    same = x["doc"][:, None, :, None] == x["doc"][:, None, None, :]
    decay = torch.exp(-x["slope"].abs()[:, None, None] * (i - j).clamp(min=0)) * _seen(n) * same
    return (x["q"] @ x["k"].mT * decay) @ x["v"] / math.sqrt(x["q"].shape[-1])


def hedgehog_quadratic(x: Inputs) -> Tensor:
    fq, fk = (torch.cat([torch.exp(y @ w.mT), torch.exp(-(y @ w.mT))], -1) for y, w in ((x["q"], x["wq"]), (x["k"], x["wk"])))
    weights = fq @ fk.mT * _seen(fq.shape[-2])
    return weights @ x["v"] / weights.sum(-1, keepdim=True)


def window_quadratic(x: Inputs, width: int = 16) -> Tensor:
    n, d = x["q"].shape[-2:]
    near = _seen(n).triu(1 - width)
    scores = (x["q"] @ x["k"].mT / d**0.5).masked_fill(~near, -torch.inf)
    exact = torch.exp(scores)
    rest = (elu(x["q"]) + 1) @ (elu(x["k"]) + 1).mT * (_seen(n) & ~near) * x["gate"].exp()[:, None, None]
    weights = exact + rest
    return weights @ x["v"] / weights.sum(-1, keepdim=True)


def joint_quadratic(x: Inputs, size: int = 16) -> Tensor:
    n = x["q"].shape[-2]
    group = torch.arange(n) // size
    local = torch.relu(x["q"] @ x["k"].mT / size).square() * (group[:, None] == group[None, :])
    return ((local + x["global_q"] @ x["global_k"].mT) * _seen(n)) @ x["v"]


RECURRENT = {
    "retention": retention, "gla": gla, "delta": delta, "gated_delta": gated_delta, "ssd": ssd, "rwkv6": rwkv6, "mamba": mamba
}  # fmt: skip
QUADRATIC = {
    "linear": linear_quadratic, "performer": performer_quadratic, "retention": retention_quadratic, "packed_linear": packed_quadratic,
    "retnet": retnet_quadratic,
    "hedgehog": hedgehog_quadratic, "window_linear": window_quadratic, "joint": joint_quadratic,
}  # fmt: skip
PACKED = (
    "retention",
    "gla",
    "delta",
    "gated_delta",
    "ssd",
    "rwkv6",
    "mamba",
    "linear",
    "performer",
    "packed_linear",
    "hedgehog",
)
"""Specs that take packed documents."""
STARTED = {
    "linear": ("initial", "initial_z"), "performer": ("initial", "initial_z"), "packed_linear": ("initial",), "mamba": ("initial",),
    "hedgehog": ("initial", "initial_z", "initial_minus", "initial_z_minus"), "joint": ("initial",),
    "window_linear": ("initial", "initial_z"),
}  # fmt: skip
"""The inputs of a spec through which a sequence goes on from the final states of another."""
SPIKES = {
    "retention": ("slope", 60.0, 300.0), "retnet": ("slope", 60.0, 300.0), "packed_linear": ("slope", 60.0, 300.0),
    "gla": ("g", 6.0, -1e4), "gated_delta": ("g", 6.0, -600.0), "rwkv6": ("w", -6.0, 6.0), "ssd": ("dt", -3.0, 900.0),
    "mamba": ("dt", -3.0, 900.0),
}  # fmt: skip
"""The input that decays are made of, a value of it that keeps and one that forgets all there was."""
