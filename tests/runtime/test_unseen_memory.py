"""What a mask excludes plays no part in any result or gradient, whatever memory holds there and however the mask is written."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, event, given, note, settings
from unseen import check, checked

import einfuse
from einfuse.runtime import split
from einfuse.runtime.backends import BACKENDS, BackendName
from einfuse.runtime.verify import Shape, example_inputs
from einfuse.testing import specs

HEAD = """attention masked(window: int = 6) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in length[b]: int
  in pad[b, j]: bool
  in doc[b, N]: int
"""
ATTENTION = """  s = sum[d](q * k) / sqrt(D) where MASK
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""
MASKS = [
    "j < length[b]",
    "j <= i + length[b] - 30",
    "j <= i and i - j < window",
    "j <= i and (window <= 0 or i - j < window)",
    "pad[b, j] and j <= i",
    "i < length[b] and j < 7",
    "j % 3 == 0",
    "abs(i - j) <= window and j > 4",
    "doc[b, i] == doc[b, j] and doc[b, j] > 1",
    "j <= 2 * i and j >= 2 * i",
    "(j <= i and i - j < window) or j == 49",
    "not (j < length[b])",
    "i // 4 == j // 4",
    "h > 0",
]
SHAPE = Shape(batch=2, heads=2, queries=37, keys=53, widths=(8, 12), group=2)
OTHERS: list[BackendName] = ["cpu", "triton"]
DTYPES = (torch.float32, torch.bfloat16)
LENGTHS = torch.tensor([20, 41])


def masked(mask: str, backend: BackendName, text: str = ATTENTION) -> einfuse.Attention:
    return einfuse.compile(HEAD + text.replace("MASK", mask), backend=backend)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_hide_what_they_exclude(mask: str) -> None:
    names = checked(masked(mask, "torch"), SHAPE, length=LENGTHS)
    assert names == {"k", "v"} if mask != "h > 0" else not names  # two heads share a key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "backend", "dtype"),
    [
        pytest.param(MASKS[n], b, DTYPES[(k + m) % 2], id=f"{MASKS[n]}-{b}-{DTYPES[(k + m) % 2]}")
        for k, n in enumerate((1, 3, 4, 8, 10))
        for m, b in enumerate(OTHERS)
    ],
)
def test_kernels_hide_what_masks_exclude(mask: str, backend: BackendName, dtype: torch.dtype) -> None:
    """Partly live strips and tiles, packed operands, merged backward passes, loads under a condition.

    Every mask on both back ends and in both dtypes, every back end in both dtypes.
    """
    assert checked(masked(mask, backend), SHAPE, dtype, length=LENGTHS) == {"k", "v"}


@pytest.mark.parametrize("backend", ["torch", "loops", *OTHERS])
@pytest.mark.parametrize("mask", ["j <= i and (i - j < 4 or doc[b, i] == doc[b, j])", "j <= i and i % 2 == j % 2"])
def test_keys_that_only_the_padding_of_queries_would_see(mask: str, backend: BackendName) -> None:
    """Nine keys, seven queries: in the block of a kernel that folds queries, the eighth and the ninth are past the last."""
    body = "  s = sum[d](q * k) where MASK\n  m = max[j](s)\n  o[i, e] = sum[j](exp(s - m) * v)\n  out o\n}"
    few = Shape(batch=2, heads=2, queries=7, keys=9, widths=(3, 4), group=2)
    assert checked(masked(mask, backend, body), few) == {"k", "v"}


@pytest.mark.parametrize("backend", OTHERS)
def test_tokens_that_see_themselves_are_enough_where_queries_are_keys(backend: BackendName) -> None:
    """A GPU is told so at launch, and looks at no mask for it."""
    shape = Shape(batch=2, heads=2, queries=37, keys=37, widths=(8, 12), group=2)
    assert checked(masked(MASKS[8], backend), shape, length=LENGTHS) == {"k", "v"}


@pytest.mark.parametrize("backend", ["torch", *OTHERS])
@pytest.mark.parametrize(
    "body",
    [
        "  s = sum[d](q * k) where MASK\n  o[i, e] = sum[j](relu(s) * v)\n  out o\n}",
        "  s = sum[d](q * k) where MASK\n  m = max[j](s)\n  o[i, e] = sum[j](exp(s - m) * v where j % 2 == 0)\n  out o\n}",
    ],
    ids=["a sum", "a maximum and a sum over fewer"],
)
@pytest.mark.parametrize("mask", ["j < 0", "j <= i and not (j <= i)"])
def test_a_mask_that_no_pair_meets_leaves_loops_without_phases(mask: str, body: str, backend: BackendName) -> None:
    attention = masked(mask, backend, body)
    given = example_inputs(attention.cascade, torch.float32, 1, SHAPE)
    leaves = [x.requires_grad_() for n, x in given.items() if n in "qkv" and isinstance(x, torch.Tensor)]
    out = attention(**given)
    assert isinstance(out, torch.Tensor)
    gradients = torch.autograd.grad(out.sum(), leaves)
    assert not any(x.count_nonzero() for x in (out, *gradients))


@pytest.mark.parametrize("mask", ["i < length[b] and j < 7", "j <= i + length[b] - 24"])
def test_queries_without_keys_are_hidden(mask: str) -> None:
    attention = masked(mask, "torch")
    inputs = {n: torch.randn(2, 2, 37, 8) for n in "qk"} | {"v": torch.randn(2, 2, 37, 12), "length": LENGTHS - 15}
    inputs |= {"pad": torch.ones(2, 37, dtype=torch.bool), "doc": torch.zeros(2, 37, dtype=torch.int64)}
    i, j, n = torch.arange(37)[:, None], torch.arange(37), (LENGTHS - 15)[:, None, None]
    live = ((i < n) & (j < 7)) if "and" in mask else (j <= i + n - 24)
    rows = ~live.any(-1)
    assert rows.any()
    check(attention, inputs, {"q": rows[:, None, :, None].expand(2, 2, 37, 8)})


@pytest.mark.parametrize("backend", ["torch", *(pytest.param(b, marks=pytest.mark.slow) for b in OTHERS)])
def test_what_follows_a_sum_of_nothing_has_all_its_features(backend: BackendName) -> None:
    """No block of keys is folded where no row of a tile sees any."""
    body = "  s = sum[d](q * k) where j < length[b]\n  o[i, e] = sum[j](s * v)\n  n[i] = sum[e](abs(o) + 1)\n  out o, n\n}"
    attention = masked("", backend, body)
    inputs = example_inputs(attention.cascade, torch.float32, 1, SHAPE) | {"length": torch.tensor([0, 0])}
    assert torch.equal(attention(**inputs)[1], torch.full((2, 2, 37), 12.0))


@pytest.mark.parametrize(
    "body",
    [
        "  kn = l2_normalise[d](k)\n  s = sum[d](l2_normalise[d](q) * kn) where MASK\n  o[i, e] = sum[j](softmax[j](s) * v)\n  out o\n}",
        "  in w[h, e]\n  s = sum[d](q * k) where MASK\n  o[i, e] = sum[j](sigmoid(s) * tanh(v * w))\n  out o\n}",
        "  s = sum[d](q * k) where MASK\n  t = s * s where j % 2 == 0\n  m = max[j](t)\n  o[i, e] = sum[j](relu(t + m) * v)\n"
        "  n = count[j](s)\n  out o, n\n}",
        "  s = sum[d](q * k) where MASK\n  l = sum[j](exp(s))\n  top = max[j](l * s)\n  o[i, e] = sum[j]((s + top) * v)\n  out o\n}",
        "  s = 1 + sum[d](q * k) where MASK\n  o[i, e] = sum[j](s * v) / (1 + sum[j](s * s))\n  out o\n}",
    ],
    ids=["normalised keys", "learned vectors behind values", "two conditions", "several kernels", "factors"],
)
@pytest.mark.parametrize("mask", ["j < length[b] and j > 3", "doc[b, i] == doc[b, j] and doc[b, j] > 1"])
def test_what_is_computed_of_hidden_keys_is_hidden(body: str, mask: str) -> None:
    assert checked(masked(mask, "torch", body), SHAPE, length=LENGTHS) == {"k", "v"}


def test_padding_is_not_seen_through_products_that_pairs_look_up() -> None:
    """They are kernels before the pairs, of all positions."""
    attention = einfuse.compile(
        """attention f over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in pq[h, 3, d]
  in pad[b, j]: bool
  s = sum[d](q * k + k * pq[h, (j - i) % 3, d]) where pad
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}""",
        backend="torch",
    )
    assert [t.name for t in attention.program.parts[0].cascade.inputs] == ["k", "pq"]  # type: ignore[attr-defined]  # it has stages
    pad = torch.arange(13) < torch.tensor([[4], [13]])
    assert checked(attention, Shape(batch=2, heads=2, queries=9, keys=13, widths=(3, 4), group=1), pad=pad) == {"k", "v"}


@pytest.mark.parametrize("backend", ["torch", *(pytest.param(b, marks=pytest.mark.slow) for b in OTHERS)])
@pytest.mark.parametrize("queries", [1, 5])
def test_unused_slots_of_a_cache_are_hidden(queries: int, backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query whose heads are rows of a tile, and calls that take the keys in parts."""
    for each in BACKENDS.values():
        monkeypatch.setattr(type(each), "workers", lambda self, device: 8)
    monkeypatch.setattr(split, "FEWEST", 8)
    attention = masked("j <= i + length[b] - Nq and i + length[b] - Nq - j < window", backend)
    q, k, v = torch.randn(2, 4, queries, 8), torch.randn(2, 2, 150, 8), torch.randn(2, 2, 150, 32)
    length, window = torch.tensor([77, 120]), 60
    rest = {"pad": torch.ones(2, 150, dtype=torch.bool), "doc": torch.zeros(2, 150, dtype=torch.int64)}
    j, n = torch.arange(150), length[:, None]
    dead = ((j >= n) | (j <= n - queries - window))[:, None, :, None]
    with torch.no_grad():
        want = attention(q, k, v, length=length, window=window, **rest)
        for value in (math.nan, math.inf):
            hidden = [x.masked_fill(dead, value) for x in (k, v)]
            assert torch.equal(attention(q, *hidden, length=length, window=window, **rest), want)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "swin",  # walked by lists
        pytest.param("paged", marks=pytest.mark.slow),
        "block_dilated",
        "lookhere",
    ],
)
def test_the_library_hides_what_its_masks_exclude(name: str) -> None:
    checked(einfuse.compile(name, backend="torch"), Shape(batch=2, heads=2, queries=37, keys=53, widths=(8, 12), group=1))


@pytest.mark.parametrize("backend", ["torch", *(pytest.param(b, marks=pytest.mark.slow) for b in OTHERS)])
@pytest.mark.parametrize(
    "body",
    [
        "state S[d, e] = (sigmoid(g) * S + k * v if pad else S)\n    o[i, e] = sum[d](q * S)",
        "u[i, e] = sum[d](k * S)\n    state S[d, e] = (S + sigmoid(g) * k * (v - u) if pad else S)\n    o[i, e] = sum[d](q * S)",
    ],
    ids=["gated", "delta rule"],
)
def test_scans_do_not_see_tokens_that_a_condition_leaves_out(body: str, backend: BackendName) -> None:
    attention = einfuse.compile(
        """attention scanned over b, h {
  rank i: query; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, i, d]
  in v[b, h, i, e]
  in g[b, h, i]
  in pad[b, i]: bool
  scan i {
    BODY
  }
  out o
}""".replace("BODY", body),
        backend=backend,
    )
    batch = 1 if backend == "triton" else 2  # an interpreter runs it
    pad = (torch.rand(batch, 77) > 0.3) & (torch.arange(77) < 50)
    inputs = {n: torch.randn(batch, 1, 77, width) for n, width in (("q", 8), ("k", 8), ("v", 16))}
    inputs["k"] /= 3
    dead = (~pad)[:, None, :].expand(batch, 1, 77)
    check(
        attention,
        inputs | {"g": torch.randn(batch, 1, 77), "pad": pad},
        {n: dead[..., None].expand_as(inputs[n]) for n in "kv"} | {"g": dead},
    )


def drawn(text: str, backend: BackendName) -> None:
    note(text)
    names = checked(einfuse.compile(text, backend=backend), Shape(batch=2, heads=2, queries=7, keys=9, widths=(3, 4), group=2))
    event(f"poisoned: {len(names) > 0}")


@pytest.mark.slow
@given(specs())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_drawn_masks_hide_what_they_exclude(text: str) -> None:
    drawn(text, "torch")


@pytest.mark.slow
@pytest.mark.parametrize("backend", OTHERS)
def test_kernels_of_drawn_masks_hide_what_they_exclude(backend: BackendName) -> None:
    @given(specs())
    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    def run(text: str) -> None:
        drawn(text, backend)

    run()
