"""Every normaliser of the library: its formula in plain torch, its passes, its merge, its range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from narrowed import flat, only
from torch import Tensor

import einfuse
from einfuse.ir import Fold, Scalar, SpecError, interpret
from einfuse.ir.merging import merge_law
from einfuse.ir.passes import canonicalise, online_fuse
from einfuse.ir.text import parse, show
from einfuse.runtime.specs import library
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

pytestmark = pytest.mark.slow

SHAPE = Shape(2, 2, 9, 13, (6, 5), 2)
SPECS: dict[str, Path] = {n: p for n, p in library().items() if p.parent.name == "normaliser"}

PASSES = {
    # what remains over the keys; the table of normalisers gives the same numbers, except for what stands behind
    "softmax1": 1,
    "sink": 1,
    "sigmoid": 1,
    "relu2": 1,
    "tanh": 1,
    "exp_plus_one": 1,
    "softplus_l1": 1,
    "power": 1,
    "taylor2": 1,
    "l2": 1,
    "nap": 1,
    "cog": 1,
    "softpick": 1,
    "ratio": 1,
    "lssar": 2,
    "sigmoid_standardised": 2,
    "softmax_standardised": 2,
    "topk": 5,  # k + 1: the k-th largest is found by k maxima in turn (a reducer that keeps k values would need 1 or 2)
    "top_p": 10,  # steps + 2: the maximum and the sum, the bisection, the weights
    "sparsemax": 14,  # steps + 1, the first estimate being the first pass
    "entmax15": 11,
    "hard": 2,
}


def over_sum(w: Tensor, eps: float = 0.0) -> Tensor:
    return w / (w.sum(-1, keepdim=True) + eps)


def threshold(s: Tensor, power: int) -> Tensor:
    """relu(s - t)^power with t by bisection to the last bit."""
    lo, hi = s.amax(-1, keepdim=True) - 1, s.amax(-1, keepdim=True)
    for _ in range(80):
        t = (lo + hi) / 2
        below = (s - t).relu().pow(power).sum(-1, keepdim=True) >= 1
        lo, hi = torch.where(below, t, lo), torch.where(below, hi, t)
    return (s - lo).relu() ** power


def standardised(s: Tensor, eps: float = 1e-6) -> Tensor:
    return (s - s.mean(-1, keepdim=True)) / (s.var(-1, correction=0, keepdim=True) + eps).sqrt()


def top_p(s: Tensor) -> Tensor:
    p, order = s.softmax(-1).sort(descending=True)
    kept = p.cumsum(-1) - p < 0.8
    return over_sum(torch.zeros_like(s).scatter(-1, order, p * kept))


def lssar(s: Tensor, n: int) -> Tensor:
    """``s`` is the product of unit vectors; the row has n keys (rows count from 1 in the paper)."""
    a = over_sum(torch.nn.functional.softplus(math.log(6) * math.log(n) * s))
    return over_sum((n * a - (1 if n > 3 else 0)).relu() ** 3)


FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    # weights of a row of scores that all exist
    "exp_plus_one": lambda s: s.exp() / (1 + s.exp().sum()),
    "softplus_l1": lambda s: over_sum(torch.log1p(s.exp())),
    "power": lambda s: over_sum(s**4, 1e-24),
    "taylor2": lambda s: over_sum(1 + s + s**2 / 2),
    "l2": lambda s: s / s.norm(),
    "cog": lambda s: s.sign() * s.abs().softmax(-1),
    "softpick": lambda s: (s.exp() - 1).relu() / ((s.exp() - 1).abs().sum() + 1e-8 * s.max().clamp(min=0).exp()),
    "ratio": lambda s: (torch.nn.functional.elu(s) + 1) / (1 + (torch.nn.functional.elu(s) + 1).square().sum()).sqrt(),
    "sigmoid_standardised": lambda s: over_sum(torch.sigmoid(standardised(s))),
    "softmax_standardised": lambda s: standardised(s).softmax(-1),
    "topk": lambda s: s.masked_fill(s < s.topk(min(4, len(s))).values[-1], -math.inf).softmax(-1),
    "top_p": top_p,
    "sparsemax": lambda s: threshold(s, 1),
    "entmax15": lambda s: threshold(s / 2, 2),
    "hard": lambda s: torch.nn.functional.one_hot(s.argmax(), len(s)).to(s),
}
LARGEST = {"exp_plus_one": 80.0}
"""Scores whose exponential, unshifted as the formula has it, is inside the range of fp32; all others take what is asked for."""
EVERY_KEY = ("nap", "sigmoid_standardised", "softmax_standardised")


def cascade_inputs(name: str, seed: int = 0) -> tuple[dict[str, Tensor | Scalar], dict[str, int]]:
    c = einfuse.compile(name).cascade
    return example_inputs(c, torch.float64, seed, SHAPE), example_sizes(c, SHAPE)


def test_every_normaliser_has_a_formula_and_a_count() -> None:
    assert set(SPECS) == set(FORMULAS) | {"nap", "lssar"}
    assert set(SPECS) <= set(PASSES)


@pytest.mark.parametrize("name", SPECS)
def test_spec_against_its_formula(name: str) -> None:
    attention = einfuse.compile(name)
    x = {n: t for n, t in cascade_inputs(name)[0].items() if isinstance(t, Tensor)}
    out = attention.reference(**x, dtype=torch.float64)
    assert isinstance(out, Tensor)
    q, k, v = x["q"], *(x[n].repeat_interleave(2, 1) for n in ("k", "v"))
    for b, h, i in ((0, 0, 0), (1, 0, 2), (0, 1, 5), (1, 1, 8)):
        n = SHAPE.keys if name in EVERY_KEY else i + 1
        s = k[b, h, :n] @ q[b, h, i]
        if name == "nap":
            w = x["gain"][h] * standardised(s, 1e-8) + x["shift"][h]
        elif name == "lssar":
            unit = k[b, h, :n] / (k[b, h, :n].square().sum(-1, keepdim=True) + 1e-6).sqrt()
            w = lssar(unit @ q[b, h, i] / (q[b, h, i].square().sum() + 1e-6).sqrt(), n)
        else:
            w = FORMULAS[name](s / math.sqrt(SHAPE.widths[0]))
        torch.testing.assert_close(out[b, h, i], w @ v[b, h, :n], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PASSES)
def test_passes_are_those_of_the_table(name: str) -> None:
    (report,) = [r for r in einfuse.compile(name).passes() if r.rank == "j"]
    assert report.after == PASSES[name]


@pytest.mark.parametrize("name", [n for n in SPECS if PASSES[n] <= 2])
def test_states_merge_in_any_blocks_and_order(name: str) -> None:
    x, sizes = cascade_inputs(name, 1)
    merge_law(online_fuse.run(canonicalise.run(flat(einfuse.compile(name).cascade))), sizes, x)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("cog", "exp(m[i] - m'[i])", "exp(m'[i] - m[i])"),
        ("l2", "a[i] / a'[i]", "a'[i] / a[i]"),
        ("nap", "0.5 * (mean'[i] - mean[i])", "0.25 * (mean'[i] - mean[i])"),
        ("lssar", "((r_max[i] + 1e-20) / (r_max'[i] + 1e-20))", "((r_max'[i] + 1e-20) / (r_max[i] + 1e-20))"),
    ],
)
def test_a_planted_wrong_carry_is_caught(name: str, right: str, wrong: str) -> None:
    """By the merge law, and by the values after the pass."""
    built = einfuse.compile(name).cascade
    x, sizes = cascade_inputs(name)
    fused = online_fuse.run(canonicalise.run(flat(built)))
    text = show(fused)
    assert right in text
    broken = parse(text.replace(right, wrong))
    with pytest.raises(AssertionError, match="a carry is wrong"):
        merge_law(broken, sizes, x)
    stepped = replace(broken, body=tuple(replace(y, step=3) if isinstance(y, Fold) else y for y in broken.body))
    assert not torch.allclose(interpret(stepped, x, sizes)["o"], interpret(built, x, sizes)["o"], rtol=1e-6)


SAMPLED = """attention f over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k)
  m = max[j](s)
  p = exp(s - m) + (relu(s - m) + relu(m - s) - abs(s - m))
  o[i, e] = sum[j](p * v)
  out o
}"""


def test_a_carry_that_is_only_sampled_is_refused_when_asked() -> None:
    """x is relu(x) - relu(-x) and abs(x) their sum: algebra is not told, samples show it."""
    canonical = canonicalise.run(flat(einfuse.compile(SAMPLED).cascade))
    assert online_fuse.run(canonical) != canonical
    with pytest.raises(SpecError, match="sampling, not proven"):
        online_fuse.run(canonical, strict=True)


def with_scores(name: str, attention: einfuse.Attention, dtype: torch.dtype, largest: float) -> dict[str, Tensor]:
    """Arguments whose products q k / sqrt(D) go up to +-``largest``, as far as the normaliser can take them."""
    x = {n: t for n, t in example_inputs(attention.cascade, dtype, 0, SHAPE).items() if isinstance(t, Tensor)}
    products = x["q"].double() @ x["k"].double().repeat_interleave(2, 1).mT / x["q"].shape[-1] ** 0.5
    scale = min(largest, LARGEST.get(name, math.inf)) / float(products.abs().max())
    return {n: (t * (scale if n == "q" else 1)).detach().requires_grad_() for n, t in x.items()}


@pytest.mark.parametrize("name", SPECS)
def test_scores_up_to_ten_thousand_stay_finite(name: str) -> None:
    """Values and gradients in fp32 wherever the oracle's are finite; by the tiled form, in torch."""
    attention = einfuse.compile(name)
    leaves = with_scores(name, attention, torch.float32, 1e4)
    out = attention.with_backend("torch")(**leaves)
    assert isinstance(out, Tensor)
    truth = attention.reference(**{n: t.double() for n, t in leaves.items()}, dtype=torch.float64)
    assert isinstance(truth, Tensor)
    assert torch.isfinite(truth).all()
    assert torch.isfinite(out).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out.sum(), list(leaves.values())))


def masked(name: str) -> str:
    """The spec with the first three rows seeing nothing."""
    text = SPECS[name].read_text(encoding="utf-8")
    found = text.replace("where j <= i", "where j + 3 <= i").replace("where not given(pad) or pad", "where j + 3 <= i")
    return (
        found
        if found != text
        else text.replace("sum[d](q * k)", "(sum[d](q * k))", 1)
        .replace("  s = (sum[d](q * k))", "  s[i, j] = (sum[d](q * k))", 1)
        .replace(" / sqrt(D)\n", " / sqrt(D) where j + 3 <= i\n", 1)
        .replace("(sum[d](q * k))\n", "(sum[d](q * k)) where j + 3 <= i\n", 1)
    )


@pytest.mark.parametrize("name", SPECS)
def test_a_row_that_sees_nothing_is_zero_and_has_finite_gradients(name: str) -> None:
    text = masked(name)
    assert "j + 3 <= i" in text
    attention = einfuse.compile(text, backend="torch")
    x = example_inputs(attention.cascade, torch.float32, 0, SHAPE)
    leaves = {n: t.detach().requires_grad_() for n, t in x.items() if isinstance(t, Tensor)}
    out = attention(**leaves)
    assert isinstance(out, Tensor)
    assert not out[:, :, :3].any()
    for g in torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True):
        assert g is None or torch.isfinite(g).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(n, d, id=f"{n}-{d}".replace("torch.", ""))
        for k, n in enumerate(sorted(SPECS))
        for d in [torch.bfloat16 if k % 4 == 0 else torch.float32]
    ],
)
def test_range_and_masked_rows_in_compiled_kernels(name: str, dtype: torch.dtype) -> None:
    """Scores up to +-1e4 in fp32 and +-100 in bf16, and rows that see nothing: one build for both."""
    attention = einfuse.compile(masked(name), backend="cpu")
    leaves = with_scores(name, attention, dtype, 1e4 if dtype == torch.float32 else 100.0)
    out = attention(**leaves)
    truth = attention.reference(**{n: t.detach().double() for n, t in leaves.items()}, dtype=torch.float64)
    assert isinstance(out, Tensor)
    assert isinstance(truth, Tensor)
    assert torch.isfinite(truth).all()
    assert torch.isfinite(out).all()
    assert not out[:, :, :3].any()
    for g in torch.autograd.grad(out.sum(), list(leaves.values()), allow_unused=True):
        assert g is None or torch.isfinite(g).all()


def sorted_sparsemax(s: Tensor) -> Tensor:
    """Exact, by sorting: Martins and Astudillo (2016), algorithm 1."""
    z = s.sort(-1, descending=True).values
    n = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    total = z.cumsum(-1) - 1
    last = (n * z > total).sum(-1, keepdim=True)
    return (s - total.gather(-1, last - 1) / last).relu()


def sorted_entmax15(s: Tensor) -> Tensor:
    """Exact, by sorting: Peters et al. (2019), algorithm 2."""
    x = (s - s.amax(-1, keepdim=True)) / 2
    z = x.sort(-1, descending=True).values
    n = torch.arange(1, s.shape[-1] + 1, dtype=s.dtype)
    mean, square = z.cumsum(-1) / n, (z * z).cumsum(-1) / n
    t = mean - ((1 - n * (square - mean * mean)) / n).clamp(min=0).sqrt()
    last = (t <= z).sum(-1, keepdim=True)
    return (x - t.gather(-1, last - 1)).relu() ** 2


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3, 1.0, 5.0, 30.0])
@pytest.mark.parametrize(("name", "exact"), [("sparsemax", sorted_sparsemax), ("entmax15", sorted_entmax15)])
def test_thresholds_are_found_at_any_length(name: str, exact: Callable[[Tensor], Tensor], spread: float) -> None:
    """With the default number of steps rows of 1 to 2048 keys have the weights that sorting finds, and sum to 1."""
    n = 2048
    q, k = torch.zeros(1, 1, n, 16, dtype=torch.float64), torch.randn(1, 1, n, 16, dtype=torch.float64)
    rows = torch.tensor([0, 1, 7, 63, 511, 1023, 2047])
    q[:, :, rows] = torch.randn(7, 16, dtype=torch.float64) * spread
    v = torch.randn(1, 1, n, 4, dtype=torch.float64)
    v[..., 0] = 1
    s = (q[:, :, rows] @ k.mT / 4).masked_fill(torch.arange(n) > rows[:, None], -math.inf)
    weights = torch.stack(
        [torch.nn.functional.pad(exact(r[: i + 1]), (0, n - 1 - i)) for r, i in zip(s[0, 0], rows, strict=True)]
    )
    o = only(einfuse.compile(name, backend="torch")(q, k, v))[0, 0, rows]
    torch.testing.assert_close(o, weights @ v[0, 0], rtol=0, atol=1e-10)
    torch.testing.assert_close(o[:, 0], torch.ones(7, dtype=torch.float64), rtol=0, atol=1e-10)
