"""Scores of minus infinity: a row whose first tiles hold nothing else is that of the scores behind them."""

from __future__ import annotations

import math

import pytest
import torch
from narrowed import flat

import einfuse
from einfuse.ir.passes import canonicalise, online_fuse
from einfuse.runtime import split
from einfuse.runtime.backends import BACKENDS, BackendName

HEAD = """attention biased over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in bias[b, i, j]
  in c[b, i]
  r = sum[d](q * k) / sqrt(D) where j < 260 + i
  s = r + bias
"""
NORMALISERS = {
    "softmax": "softmax[j](s)",
    "without a floor": "exp(s - max[j](s)) / sum[j](exp(s - max[j](s)))",
    "far below": "softmax[j](s - 900)",
    "one more": "softmax1[j](s)",
    "a sink": "sink_softmax[j](s, c)",
    "what minus infinity adds to": "softpick[j](s)",
    "a floor": "abs(exp(s - m) - exp(c - 5 - m)) / sum[j](abs(exp(s - m) - exp(c - 5 - m)))",
    "a floor far below": "abs(exp(s - 900 - n) - exp(c - 905 - n)) / sum[j](abs(exp(s - 900 - n) - exp(c - 905 - n)))",
    "a statistic of other scores": "exp(r - max[j](s)) / 9",
    "the smallest": "exp(s + min[j](-s)) / sum[j](exp(s + min[j](-s)))",
    "twice": "softmax[j](s) * softmax[j](2 * s)",
    "in steps": "topk_softmax[j](s, 3)",
    "sparse": "sparsemax[j](s, 6)",
}
DTYPES = (torch.float32, torch.bfloat16)
LETS = "  m = max(max[j](s), c - 5)\n  n = max(max[j](s - 900), c - 905)\n"


def biased(name: str, backend: BackendName) -> einfuse.Attention:
    used = "\n".join(x for x in LETS.splitlines() if f" {x.split()[0]})" in NORMALISERS[name])
    return einfuse.compile(f"{HEAD}{used}\n  o[i, e] = sum[j]({NORMALISERS[name]} * v)\n  out o\n}}", backend=backend)


def inputs(attention: einfuse.Attention, dtype: torch.dtype, queries: int = 21) -> dict[str, torch.Tensor]:
    """Keys 0 to 199 of all rows, and 210 to 279 of every other, have no weight."""
    x = {
        n: torch.randn(1, 2, length, width).to(dtype) for n, length, width in (("q", queries, 8), ("k", 300, 8), ("v", 300, 12))
    }
    bias = torch.randn(1, queries, 300)
    bias[:, :, :200] = -math.inf
    bias[:, 1::2, 210:280] = -math.inf
    x |= {"bias": bias, "c": torch.randn(1, queries)}
    return {t.name: x[t.name].requires_grad_(t.name != "c") for t in attention.cascade.inputs if t.name in x}


def compared(attention: einfuse.Attention, dtype: torch.dtype, queries: int = 21) -> None:
    x = inputs(attention, dtype, queries)
    exact = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    found, truth = attention(**x), attention.reference(**exact, dtype=torch.float64)
    assert isinstance(found, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    along = torch.randn(found.shape)
    pairs = {"o": (found, truth)}
    found.backward(along.to(dtype))
    truth.backward(along.double())
    pairs |= {n: (x[n].grad, exact[n].grad) for n in x if n != "c"}  # type: ignore[misc]
    allowed = 1e-4 if dtype == torch.float32 else 2e-2
    for name, (a, b) in pairs.items():
        scale = max(1.0, b.abs().max().item())
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=allowed, msg=lambda m, name=name: f"{name}: {m}")  # type: ignore[misc]


@pytest.mark.parametrize("name", NORMALISERS)
def test_plans_of_rows_that_begin_with_minus_infinity(name: str) -> None:
    compared(biased(name, "loops"), torch.float32)


@pytest.mark.parametrize(
    ("name", "backend", "dtype"),
    [
        pytest.param(n, b, DTYPES[(k + m) % 2], id=f"{n}-{b}-{DTYPES[(k + m) % 2]}")
        for k, n in enumerate(("softmax", "what minus infinity adds to"))
        for m, b in enumerate(("torch", "cpu", "triton"))
    ],
)
def test_kernels_of_rows_that_begin_with_minus_infinity(name: str, backend: BackendName, dtype: torch.dtype) -> None:
    """Both normalisers on every back end; each of them, and every back end, in both dtypes."""
    compared(biased(name, backend), dtype)


OTHERS = [n for n in NORMALISERS if n not in ("softmax", "what minus infinity adds to")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), [(n, ("torch", "cpu", "triton")[k % 3]) for k, n in enumerate(OTHERS)])
def test_other_kernels_of_rows_that_begin_with_minus_infinity(name: str, backend: BackendName) -> None:
    """On one back end each: every one's plans are tried above."""
    compared(biased(name, backend), torch.float32)


@pytest.mark.parametrize(
    "backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow), pytest.param("triton", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["softmax", "what minus infinity adds to", "a floor"])
def test_parts_of_the_keys_may_be_minus_infinity(name: str, backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight parts, five hold no other score."""
    for each in BACKENDS.values():
        monkeypatch.setattr(type(each), "workers", lambda self, device: 8)
    monkeypatch.setattr(split, "FEWEST", 8)
    attention = biased(name, backend)
    x = {n: t.detach() for n, t in inputs(attention, torch.float32, 1).items()}
    with torch.no_grad():
        found, truth = attention(**x), attention.reference(**x, dtype=torch.float64)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        (n, "torch")
        for n in (
            "softmax[j](s)",
            "topk_softmax[j](s, 3)",
            "topp_softmax[j](s, 0.9, 12)",
            "sparsemax[j](s, 6)",
            "entmax15[j](s, 8)",
        )
    ]
    + [("hardmax[j](s)", "loops"), ("softmax[j](s)", "loops"), ("softmax[j](s)", "cpu"), ("softmax[j](s)", "triton")],
)
def test_a_row_of_nothing_but_minus_infinity_has_no_weights(name: str, backend: BackendName) -> None:
    """Its output and its gradients are 0, as torch's SDPA has it; and no NaN reaches the keys, which the other rows read too."""
    attention = einfuse.compile(f"{HEAD}  o[i, e] = sum[j]({name} * v)\n  out o\n}}", backend=backend)
    x = {
        n: t.detach()[..., :20, :] if n in "qkv" else t.detach()[..., :20, :20]
        for n, t in inputs(attention, torch.float32).items()
    }
    x["bias"] = torch.randn(1, 20, 20)
    x["bias"][:, 3::5] = -math.inf
    x = {n: t.clone().requires_grad_() for n, t in x.items()}
    exact = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    found, truth = attention(**x), attention.reference(**exact, dtype=torch.float64)
    assert isinstance(found, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    assert (found[:, :, 3::5] == 0).all()
    along = torch.randn(found.shape)
    found.backward(along)
    truth.backward(along.double())
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-5)
    for n, t in exact.items():
        if t.grad is not None:  # of c, which nothing reads, and of what is chosen there is none
            torch.testing.assert_close(x[n].grad.double(), t.grad, rtol=0, atol=1e-4)  # type: ignore[union-attr]


def test_what_softmax_looks_at() -> None:
    """A floor under the maximum leaves nothing to look at. What is added up beside an infinite one without a floor is 0: nothing is corrected
    for it."""
    from einfuse.ir.nodes import Fold
    from einfuse.ir.references import reviving, vanishes

    found = {}
    for name in ("softmax", "without a floor", "one more", "what minus infinity adds to", "a statistic of other scores"):
        body = online_fuse.run(canonicalise.run(flat(biased(name, "loops").cascade))).body
        fold = next(x for x in body if isinstance(x, Fold))
        last = [y for y in fold.states if y.carry is not None][-1]
        dead = reviving(fold, last)
        found[name] = (len(dead), bool(dead) and vanishes(fold, last, dead))
    assert found == {
        "softmax": (0, False),
        "without a floor": (1, True),
        "one more": (0, False),
        "what minus infinity adds to": (0, False),
        "a statistic of other scores": (1, False),
    }
