"""Conditions and whole numbers as values: ``any`` wherever a condition may stand, and outputs of the types that statements have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import einfuse
from einfuse.runtime.backends import BackendName

HEAD = """attention truths over b, h {
  rank i: query; rank j: key; rank d, e: feature; rank n: feature = 4
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in pad[b, j]: bool
  in t[b, N]: int
"""
WEIGHED = "o[i, e] = sum[j](softmax[j](s) * v)"
ANY = {
    "as an output": "s = sum[d](q * k) where j <= i; a = any[j](s > 2); out a",
    "of positions": "a[i] = any[j](j > i and pad[b, j]); out a",
    "of nothing": "s = sum[d](q * k) where j < i - 100; a = any[j](s > 2); out a",
    "in a score": f"r = sum[d](q * k) where j <= i; a = any[j](r > 2); s = r + (1 if a else 0) * sum[d](k); {WEIGHED}; out o",
    "denied": f"s = sum[d](q * k) where pad; a = any[j](s > 2); {WEIGHED}; p[i, e] = o * float(not a and i > 3); out p",
    "all": f"s = sum[d](q * k) where pad; a[i] = not any[j](not s > -2); {WEIGHED}; p[i, e] = o * (2.0 if a else 1.0); out p, a",
    "in the condition of a later statement": "r = sum[d](q * k) where j <= i; a = any[j](r > 3); s = r where a or j == 0; "
    f"{WEIGHED}; out o",
    "in a mask of positions": f"a[i] = any[j](pad and t[b, j] == t[b, i]); s = sum[d](q * k) where a and j <= i; {WEIGHED}; out o",
    "in a mask of positions, given out": "a[i] = any[j](pad and t[b, j] == t[b, i]); s = sum[d](q * k) where a and j <= i; "
    f"{WEIGHED}; out o, a",
    "of keys' features": f"a[j] = any[d](k > 1); s = sum[d](q * k) where a and j <= i; {WEIGHED}; out o",
    "of pairs' features": f"r[i, j] = any[d](q > k + 2.5); s = sum[d](q * k) where r or i == j; {WEIGHED}; out o",
    "over queries": "s = sum[d](q * k) where j <= i; a[j] = any[i](s > 3); o[i, e] = sum[j](sigmoid(s) * v * float(a)); out o, a",
    "over queries, in a mask": f"a[j] = any[i](i > j + 3 and pad); s = sum[d](q * k) where a; {WEIGHED}; out o, a",
    "where": "s = sum[d](q * k); a[i] = any[j](s > 2 where pad); o[i, e] = sum[j]((s if a else 0) * v); out o, a",
    "of a linear attention": "a[i] = any[j](pad); o[i, e] = sum[j]((sum[d](q * k) if a else 0.0) * v); out o",
    "beside other points": "s = sum[d](q * k) where j <= i; a = any[j](s > 2 where pad); m = max[j](s); "
    "o[i, e] = sum[j]((exp(s - m) if a else s) * v); out o, a, m",
}
WHOLE = f"""s = sum[d](q * k) where j <= i; {WEIGHED}
  c[i] = i // 2 + 5 * int(any[j](s > 1)); f[i] = floor(max[j](s)); y[j] = t[b, j] * 16777217; g[i] = any[j](s > 2)
  p[i, j] = t[b, j] > 0 where j <= i; w[i, j] = t[b, j] * 16777217 where j <= i; z[i, d] = q > 0
  out o, c, f, y, g, p, w, z"""
TYPES = (torch.int64, torch.int64, torch.int64, torch.bool, torch.bool, torch.int64, torch.bool)
BACKENDS: list[BackendName] = ["torch", "loops", "cpu", "triton"]


def made(body: str, backend: BackendName) -> einfuse.Attention:
    return einfuse.compile(f"{HEAD}  {body}\n}}", backend=backend)


def inputs(attention: einfuse.Attention) -> dict[str, torch.Tensor]:
    x = {n: torch.randn(2, 2, 71, w).requires_grad_() for n, w in (("q", 8), ("k", 8), ("v", 12))}
    x |= {"pad": torch.rand(2, 71) > 0.4, "t": torch.randint(-3, 4, (2, 71))}
    return {t.name: x[t.name] for t in attention.cascade.inputs}


def compared(attention: einfuse.Attention) -> None:
    x = inputs(attention)
    pairs = []
    calls: tuple[Callable[..., Any], ...] = (attention, attention.reference)
    for call in calls:
        outs: Any = call(**x)
        outs = outs if isinstance(outs, tuple) else (outs,)
        moving = [o for o in outs if o.requires_grad]
        along = [torch.linspace(-1, 1, o.numel()).reshape(o.shape).to(o.dtype) for o in moving]
        leaves = [t for t in x.values() if t.requires_grad]
        grads = torch.autograd.grad(moving, leaves, along, allow_unused=True) if moving else ()
        pairs.append((outs, grads))
    (found, found_grads), (truth, true_grads) = pairs
    for a, b in zip((*found, *found_grads), (*truth, *true_grads), strict=True):
        if b is not None:
            assert a.dtype == b.dtype or a.is_floating_point() == b.is_floating_point() is True, (a.dtype, b.dtype)
            torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["torch", *(pytest.param(b, marks=pytest.mark.slow) for b in BACKENDS[1:])])
@pytest.mark.parametrize("where", ANY)
def test_any_stands_wherever_a_condition_may(where: str, backend: BackendName) -> None:
    compared(made(ANY[where], backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_have_the_types_of_their_statements(backend: BackendName) -> None:
    """Ints are int64 and lose no digits (a float has 24 bits), conditions are bool: where a mask limits them, too."""
    attention = made(WHOLE, backend)
    compared(attention)
    outs = attention(**inputs(attention))
    assert isinstance(outs, tuple)
    assert tuple(o.dtype for o in outs[1:]) == TYPES


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch.func imports it
def test_outputs_have_their_types_under_every_transform() -> None:
    attention = made(WHOLE, "torch")
    x = {n: t.detach() for n, t in inputs(attention).items()}
    want: Any = attention(**x)

    def check(outs: Any) -> None:
        assert tuple(o.dtype for o in outs[1:]) == TYPES
        for a, b in zip(outs, want, strict=True):
            if not a.is_meta:
                torch.testing.assert_close(a, b)

    class Module(torch.nn.Module):
        def forward(self, *args: Any) -> Any:
            return attention(*args)

    check(torch.compile(attention, backend="aot_eager", fullgraph=True)(**x))
    check(torch.export.export(Module(), tuple(x.values())).module()(*x.values()))
    check(attention(**{n: t.to("meta") for n, t in x.items()}))
    mapped = torch.vmap(lambda *args: attention(*(a[None] for a in args)))(*x.values())
    check([o.squeeze(1) for o in mapped])
    outs, moved = torch.func.jvp(lambda q: attention(**{**x, "q": q}), (x["q"],), (torch.randn_like(x["q"]),))[:2]
    check(outs)
    assert not any(t.any() for t in moved[1:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_computed_of_places_that_do_not_exist_fits(backend: BackendName) -> None:
    """A slot without a point holds the least number of 32 bits, of which nothing is computed."""
    body = "sel[i, n] = topk[j -> n](sum[d](q * k) where j <= i); m[i, n] = sel[i, n] * 2; out m"
    attention = made(body, backend)
    x = {n: t.detach() for n, t in inputs(attention).items()}
    found, truth = attention(**x), attention.reference(**x, dtype=torch.float64)
    assert isinstance(found, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    exist = torch.arange(4) <= torch.arange(71)[:, None]
    assert found.dtype == torch.int64
    assert torch.equal(found[..., exist], truth[..., exist])
