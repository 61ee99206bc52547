"""Cascades in text form that the tests of the passes share: normalisers, score functions, masks and captured tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from narrowed import flat

from einfuse.ir import Cascade, Flat, Scalar
from einfuse.ir.text import parse

HEAD = """cascade {name} over b, h {{
  rank b: batch = B
  rank h: head = H
  rank i: query = Nq
  rank j: key = Nk
  rank d: feature = D
  rank e: feature = E
  in q[B, H, Nq, D]: float
  in k[B, H // group, Nk, D]: float
  in v[B, H // group, Nk, E]: float
  in slope[H]: float
  in tau[H]: float
  in sink[H]: float
  in bias[B, H, Nq, Nk]: float
  in head_bias[H, Nq, Nk]: float
  in table[H, Nq + Nk]: float
  in square[B, H, Nk, D, D]: float
  in row[H, Nq]: float
  in column[B, Nk]: float
  in doc[B, Nk]: int
  in pad[B, Nk]: bool
  param window: int = 4
"""
QK = "  qk[i, j] = sum[d] q[b, h, i, d] * k[b, h // group, j, d]\n"
SOFTMAX = """  m[i] = max[j] s[i, j]
  p[i, j] = exp(s[i, j] - m[i])
  l[i] = sum[j] p[i, j]
  a[i, j] = p[i, j] / l[i]
"""
VALUE = "  o[i, e] = sum[j] a[i, j] * v[b, h // group, j, e]\n"
ALIBI = "  s[i, j] = qk[i, j] / sqrt(D) + slope[h] * (j - i) where j <= i and i - j < window[]\n"
COSINE = """  qn[i] = sum[d] q[b, h, i, d] * q[b, h, i, d]
  kn[j] = sum[d] k[b, h // group, j, d] * k[b, h // group, j, d]
  qh[i, d] = q[b, h, i, d] / sqrt(qn[i])
  kh[j, d] = k[b, h // group, j, d] / sqrt(kn[j])
  qk[i, j] = sum[d] qh[i, d] * kh[j, d]
  s[i, j] = qk[i, j] * tau[h] where j <= i + 3
"""
ROTARY = COSINE.replace("/ sqrt(qn[i])", "* cos(float(i * d)) + q[b, h, i, (d + D // 2) % D] * sin(float(i * d))")
PLACES = """  qk[i, j] = sum[d] q[b, h, i, 2 * d - 3] * k[b, h // group, j, doc[b, d]]
  s[i, j] = qk[i, j] / sqrt(D) + k[b, h // group, j, 2] - q[b, h, i, i % D] + square[b, h, j, j % D, (j + 1) % D]
"""  # features outside an axis, at places in a tensor, at one place, at one of the row's own, and at two such
BIASES = """  s[i, j] = qk[i, j] / sqrt(D) + bias[b, h, i, j] + head_bias[h, i, j] + table[h, j - i + Nq] * slope[h] + row[h, i] + column[b, j]
"""
COUNT = "  n[i] = sum[j] 1 where j <= i and i - j < window[]\n"

BODIES: dict[str, tuple[str, int]] = {
    # the body, and the passes over j that remain once fused
    "softmax": (QK + ALIBI + SOFTMAX + VALUE, 1),
    "full": (QK + "  s[i, j] = qk[i, j] / sqrt(D)\n" + SOFTMAX + VALUE, 1),
    "softmax1": (QK + ALIBI + SOFTMAX.replace("/ l[i]", "/ (l[i] + exp(-m[i]))") + VALUE, 1),
    "sink": (QK + ALIBI + SOFTMAX.replace("/ l[i]", "/ (l[i] + exp(sink[h] - m[i]))") + VALUE, 1),
    "unstable": (QK + ALIBI + "  l[i] = sum[j] exp(s[i, j])\n  a[i, j] = exp(s[i, j]) / (1 + l[i])\n" + VALUE, 1),
    "sigmoid": (QK + ALIBI + "  a[i, j] = sigmoid(s[i, j] - log(Nk))\n" + VALUE, 1),
    "relu2": (QK + ALIBI + COUNT + "  a[i, j] = max(0, s[i, j]) * max(0, s[i, j]) / n[i]\n" + VALUE, 1),
    "powers": (QK + ALIBI + "  l[i] = sum[j] 1.5 ^ s[i, j]\n  a[i, j] = 1.5 ^ s[i, j] / l[i]\n" + VALUE, 1),
    "softplus": (QK + ALIBI + "  l[i] = sum[j] softplus(s[i, j])\n  a[i, j] = softplus(s[i, j]) / l[i]\n" + VALUE, 1),
    "tanh": (QK + ALIBI + "  a[i, j] = tanh(s[i, j]) / Nk\n" + VALUE, 1),
    "power": (
        QK
        + ALIBI
        + "  m[i] = max[j] abs(s[i, j])\n  l[i] = sum[j] (s[i, j] / m[i]) ^ 4\n  a[i, j] = (s[i, j] / m[i]) ^ 4 / l[i]\n"
        + VALUE,
        1,
    ),
    "signed": (
        QK
        + ALIBI
        + "  m[i] = max[j] abs(s[i, j])\n  l[i] = sum[j] exp(abs(s[i, j]) - m[i])\n"
        + "  a[i, j] = sign(s[i, j]) * exp(abs(s[i, j]) - m[i]) / l[i]\n"
        + VALUE,
        1,
    ),
    "softpick": (
        QK
        + ALIBI
        + "  m[i] = max[j] s[i, j]\n  l[i] = sum[j] abs(exp(s[i, j] - m[i]) - exp(-m[i]))\n"
        + "  a[i, j] = max(0, exp(s[i, j] - m[i]) - exp(-m[i])) / (l[i] + 0.01)\n"
        + VALUE,
        1,
    ),
    "standardised": (
        QK
        + ALIBI
        + COUNT
        + "  s1[i] = sum[j] s[i, j]\n  mu[i] = s1[i] / n[i]\n  m2[i] = sum[j] (s[i, j] - mu[i]) * (s[i, j] - mu[i])\n"
        + "  a[i, j] = (s[i, j] - mu[i]) / sqrt(m2[i] / n[i] + 0.1)\n"
        + VALUE,
        1,
    ),
    "reweighted": (
        QK
        + ALIBI
        + COUNT
        + "  l[i] = sum[j] softplus(s[i, j])\n  w[i, j] = max(0, n[i] * softplus(s[i, j]) / l[i] - 0.5) ^ 3\n"
        + "  z[i] = sum[j] w[i, j]\n  a[i, j] = w[i, j] / (z[i] + 0.1)\n"
        + VALUE,
        2,
    ),
    "standardised_sigmoid": (
        QK
        + ALIBI
        + COUNT
        + "  s1[i] = sum[j] s[i, j]\n  s2[i] = sum[j] (s[i, j] - s1[i] / n[i]) * (s[i, j] - s1[i] / n[i])\n"
        + "  a[i, j] = sigmoid((s[i, j] - s1[i] / n[i]) / sqrt(s2[i] / n[i] + 0.1))\n"
        + VALUE,
        2,
    ),
    "cosine": (COSINE + SOFTMAX + VALUE, 1),
    "rotary": (ROTARY + SOFTMAX + VALUE, 1),
    "places": (PLACES + SOFTMAX + VALUE, 1),
    "biases": (QK + BIASES + SOFTMAX + VALUE, 1),
    "documents": (QK + "  s[i, j] = qk[i, j] where doc[b, i] == doc[b, j] and pad[b, j]\n" + SOFTMAX + VALUE, 1),
    "statistics": (QK + ALIBI + SOFTMAX + VALUE + "  lse[i] = m[i] + log(l[i])\n", 1),
    "weights": (QK + ALIBI + SOFTMAX + VALUE, 1),
}


def cascade(name: str) -> Flat:
    """The corpus cascade of that name, with only the inputs it reads."""
    outs = {"statistics": "o, lse"}.get(name, "o")
    text = HEAD.format(name=name) + BODIES[name][0] + f"  out {outs}\n}}"
    used = [
        line for line in text.splitlines() if not line.strip().startswith(("in ", "param ")) or _read(line, BODIES[name][0])
    ]
    return flat(parse("\n".join(used)))


def _read(line: str, body: str) -> bool:
    name = line.strip().split()[1].split("[")[0].rstrip(":")
    return f"{name}[" in body


SIZES = {"B": 2, "H": 4, "Nq": 9, "Nk": 11, "D": 6, "E": 5, "group": 2}


def inputs(c: Cascade, seed: int = 0, grad: bool = False, sizes: Mapping[str, int] = SIZES) -> dict[str, torch.Tensor | Scalar]:
    """Fresh float64 inputs."""
    from einfuse.runtime.binding import evaluate

    generator = torch.Generator().manual_seed(seed)
    out: dict[str, torch.Tensor | Scalar] = {}
    for t in c.inputs:
        if t.param:
            assert t.default is not None
            out[t.name] = t.default
            continue
        shape = [int(evaluate(a, sizes)) for a in t.axes]
        if t.dtype == "float":
            out[t.name] = torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_(grad)
        elif t.dtype == "int":
            out[t.name] = torch.randint(0, 3, shape, generator=generator).sort(-1).values
        else:
            out[t.name] = torch.rand(shape, generator=generator) > 0.3
    return out
