"""Conditions on what was computed: on pairs, on statistics of the row, on both; beside formulas in plain torch, values and gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from narrowed import three
from torch import Tensor

import einfuse
from einfuse.ir import SpecError
from einfuse.runtime.verify import verify

HEAD = """attention conditions over b {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, i, d]
  in k[b, j, d]
  in v[b, j, e]
  in g[b, i, j]
"""
END = """
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""
Formula = Callable[[Tensor, Tensor], Tensor]
CASES: dict[str, tuple[str, Formula]] = {
    "pairs": ("w = g * 2\n  s = sum[d](q * k) where w >= 0", lambda s, g: g * 2 >= 0),
    "a statistic of another input": (
        "t = mean[j](g)\n  s = sum[d](q * k) where g >= t",
        lambda s, g: g >= g.mean(-1, keepdim=True),
    ),
    "the scores themselves": ("u = sum[d](q * k)\n  s = u where u >= mean[j](u)", lambda s, g: s >= s.mean(-1, keepdim=True)),
    "or of the diagonal": (
        "u = sum[d](q * k) where j <= i\n  s = u where u > mean[j](u) or i == j",
        lambda s, g: (s > (s.tril().sum(-1) / torch.arange(1, 91))[..., None]).tril() | torch.eye(90).bool(),
    ),
    "with positions": (
        "u = sum[d](q * k)\n  s = u where u + g >= 0 and j <= i",
        lambda s, g: (s + g >= 0) & torch.ones_like(g).tril().bool(),
    ),
}


def attend(q: Tensor, k: Tensor, v: Tensor, g: Tensor, live: Formula) -> Tensor:
    s = q @ k.mT
    seen = live(s.detach(), g)
    weights = s.masked_fill(~seen, -math.inf).softmax(-1)
    return torch.where(seen.any(-1, keepdim=True), weights, 0) @ v


@pytest.mark.parametrize("name", CASES)
def test_conditions_on_values(name: str) -> None:
    text, live = CASES[name]
    attention = einfuse.compile(HEAD + "  " + text + END, backend="torch")
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 90, 6, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))
    g = torch.randn(2, 90, 90, generator=generator, dtype=torch.float64)
    found, truth = attention(q, k, v, g), attend(q, k, v, g, live)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, truth)
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), (q, k, v)) for o in (found, truth)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_what_is_left_out_may_be_large_and_rows_may_be_empty(backend: str) -> None:
    """Scores that are not chosen lie far above the others (their exponentials overflow), and come first; some rows choose nothing."""
    attention = einfuse.compile(HEAD + "  w = g * 2\n  s = sum[d](q * k) where w >= 0" + END, backend=backend)  # type: ignore[arg-type]
    assert attention.passes()[0].after == 1
    q, k, v = (torch.randn(1, 200, 8) for _ in range(3))
    q[..., 0], k[..., 0] = 20, 20
    k[:, 150:, 0] = -20
    g = torch.randn(1, 200, 200)
    g[..., :150], g[:, 7] = -1, -1
    x = [t.requires_grad_() for t in (q, k, v)]
    found, truth = attention(*x, g), attend(*three(t.double() for t in x), g.double(), lambda s, g: g >= 0)
    assert isinstance(found, Tensor)
    assert found[:, 7].abs().max() == 0
    torch.testing.assert_close(found.double(), truth, rtol=1e-3, atol=1e-3)
    for a, b in zip(*(torch.autograd.grad(o.sum(), x) for o in (found, truth)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * b.abs().max().item())


def test_outputs_over_pairs_are_zero_where_the_condition_fails() -> None:
    text = """attention pairs over b {
  rank i: query; rank j: key; rank d: feature
  in q[b, i, d]
  in k[b, j, d]
  u = sum[d](q * k)
  s = u * 2 where u >= 0
  n[i] = count[j](s)
  out s, n
}"""
    q, k = torch.randn(2, 7, 4), torch.randn(2, 11, 4)
    s, n = einfuse.compile(text, backend="torch")(q, k)
    product = q @ k.mT
    torch.testing.assert_close(s, product.relu() * 2)
    torch.testing.assert_close(n, (product >= 0).sum(-1).float())


def test_rows_without_keys_where_heads_are_held_whole() -> None:
    text = """attention groups over b {
  rank g: head = G; rank i: query; rank j: key; rank d, e: feature
  in q[b, g, i, d]
  in k[b, j, d]
  in v[b, j, e]
  s = sum[d](q * k) where j + 3 <= i
  o[g, i, e] = sum[j](softmax[j](s) * v)
  out o
}"""
    q, k, v = torch.randn(2, 3, 9, 4), torch.randn(2, 9, 4), torch.randn(2, 9, 5)
    found = einfuse.compile(text, backend="torch")(q, k, v)
    assert isinstance(found, Tensor)
    live = torch.ones(9, 9).tril(-3).bool()
    weights = torch.where(live, (q @ k[:, None].mT).masked_fill(~live, -1e30).softmax(-1), 0)
    torch.testing.assert_close(found, weights @ v[:, None])


def test_one_reduction_over_two_features_is_two() -> None:
    """A bilinear score: the map of the queries is summed first, then it meets the keys."""
    text = """attention bilinear over b {
  rank i: query; rank j: key; rank d, c, e: feature
  in q[b, i, d]
  in k[b, j, c]
  in v[b, j, e]
  in w[d, c]
  s = sum[d, c](q * w * k)
  m[i] = max[d, c](w * q - c)
  o[i, e] = sum[j](softmax[j](s) * v) + m
  out o
}"""
    attention = einfuse.compile(text, backend="torch")
    q, k, v, w = (torch.randn(n, dtype=torch.float64).requires_grad_() for n in ((2, 9, 4), (2, 7, 3), (2, 7, 5), (4, 3)))
    found = attention(q, k, v, w)
    assert isinstance(found, Tensor)
    most = (w * q[..., None] - torch.arange(3)).amax((-2, -1))
    truth = (q @ w @ k.mT).softmax(-1) @ v + most[..., None]
    torch.testing.assert_close(found, truth)
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), (q, k, v, w)) for o in (found, truth)), strict=True):
        torch.testing.assert_close(a, b)


PAIRS = """attention pairs over b {
  rank i: query; rank j: key; rank r: key = R; rank d, e: feature
  in q[b, i, d]
  in k[b, j, d]
  in u[b, r, d]
  in v[b, j, e]
  s = sum[d](q * k)
  z = sum[d](q * u)
"""
KEPT = {
    "a count": ("n[i, j] = count[r](z where z > s)", "p = exp(s) where n < 3", "n"),
    "a running sum": ("t[i, j] = sum[r](softplus(z) where r > j)", "p = exp(s - t)", "t"),
    "a maximum": ("m[i, j] = max[r](z - r * j)", "p = exp(s + m)", "m"),
    "any": ("a[i, j] = any[r](z > s)", "p = exp(s) + int(a)", "a_max"),
    "a product of maps": ("c = sum[d](u * k)", "p = exp(sum[r](z * c))", "zc"),
    "two ranks at once": ("c = sum[d](q * k * u)", "p = exp(sum[d](k)) * sum[j, r](exp(c))", "p_sum"),
}


@pytest.mark.parametrize("case", KEPT)
def test_reductions_that_keep_pairs_of_positions_are_refused_and_the_way_that_is_named_works(case: str) -> None:
    first, second, target = KEPT[case]
    text = PAIRS + f"  {first}\n  {second}\n  o[i, e] = sum[j](p * v)\n  out o\n}}"
    with pytest.raises(SpecError, match=f"`{target}` reduces over . for every pair of i and .: no kernel holds") as caught:
        einfuse.compile(text)
    assert caught.value.line in (9, 10)
    assert "^" in str(caught.value)
    way = re.search(r"rank (\w): feature = (\w+)$", caught.value.hint)
    assert way is not None
    declared = {"j": "rank j: key;", "r": "rank r: key = R;"}[way[1]]
    whole = einfuse.compile(text.replace(declared, f"{way[0]};"), backend="torch")
    x = [torch.randn(n, dtype=torch.float64).requires_grad_() for n in ((2, 5, 3), (2, 6, 3), (2, 7, 3), (2, 6, 4))]
    found, truth = whole(*x), whole.reference(*x)
    assert isinstance(found, Tensor)
    assert isinstance(truth, Tensor)
    torch.testing.assert_close(found, truth)
    for a, b in zip(*(torch.autograd.grad(o.sin().sum(), x, materialize_grads=True) for o in (found, truth)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_sum_that_is_given_out_along_a_rank_of_known_size_is_refused() -> None:
    """The rank is gone along to give the sum out, so that it is not held, whatever its size is."""
    text = PAIRS.replace("rank r: key = R", "rank r: key = 3") + "  n[i, r] = sum[j](exp(s) * (r + j))\n  out n\n}"
    with pytest.raises(SpecError, match="`n` reduces over j for every pair of i and r: no kernel holds") as caught:
        einfuse.compile(text)
    assert (caught.value.line, caught.value.hint[-19:]) == (9, "rank r: feature = 3")


def test_states_that_move_with_a_let_made_of_lets() -> None:
    """The backward of two results of one map, over several tiles: its states move with a row scalar computed from another one."""
    text = """attention two over b {
  rank g: head = G; rank i: query; rank r: key = R; rank w: feature = W; rank d, e: feature
  in q[b, g, i, d]
  in k[b, r, d]
  in v[b, r, e]
  in share[r, w]
  p = softmax[r](sum[d](q * k))
  o[g, i, e] = sum[r](p * v)
  given[i, w] = sum[g, r](p * share)
  out o, given
}"""
    x = [torch.randn(n, dtype=torch.float64).requires_grad_() for n in ((1, 2, 3, 4), (1, 600, 4), (1, 600, 5), (600, 3))]
    q, k, v, share = x
    p = torch.einsum("bgid,brd->bgir", q, k).softmax(-1)
    truth = torch.einsum("bgir,bre->bgie", p, v), torch.einsum("bgir,rw->biw", p, share)
    found = einfuse.compile(text, backend="torch")(*x)
    grads = [torch.autograd.grad(sum(o.square().sum() for o in outs), x) for outs in (found, truth)]  # type: ignore[arg-type]
    for a, b in zip((*found, *grads[0]), (*truth, *grads[1]), strict=True):
        torch.testing.assert_close(a, b)


def test_verification_of_an_output_without_gradient() -> None:
    """The number of chosen keys beside the result: the oracle gives it no gradient."""
    text = HEAD + "  w = g * 2\n  s = sum[d](q * k) where w >= 0\n  n[i] = count[j](s)" + END.replace("out o", "out o, n")
    certificate = verify(einfuse.compile(text), backends=["torch"], dtypes=["float32"], brief=True)
    assert certificate.ok
    assert {"out 1", "d q"} <= {r.what for r in certificate.rows}
