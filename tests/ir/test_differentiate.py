"""Derived backward cascades against autograd through the forward cascade as written."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

import corpus
import pytest
import torch
from narrowed import flat

from einfuse import dsl
from einfuse.ir import Cascade, Scalar, SpecError, interpret
from einfuse.ir.passes import canonicalise, differentiate, pipeline
from einfuse.ir.text import parse, show
from einfuse.runtime.given import Given
from einfuse.runtime.scatter import accumulate

Values = dict[str, torch.Tensor | Scalar]


def derived(c: Cascade, x: Values, directions: Mapping[str, torch.Tensor], fused: bool) -> dict[str, torch.Tensor]:
    """The gradients by the backward cascades, interpreted before or after they are fused themselves."""
    canonical = canonicalise.run(flat(c))
    wanted = [t.name for t in canonical.inputs if t.dtype == "float" and not t.param]
    backward = differentiate.run(canonical, wanted)
    outs = (*canonical.outs, *(n for n in backward.saved if n not in canonical.outs))
    saved = interpret(replace(canonical, outs=outs), x, corpus.SIZES)
    env: Values = {**x, **{n: s.detach() for n, s in saved.items()}, **{f"d_{n}": g for n, g in directions.items()}}
    total: dict[str, torch.Tensor] = {}
    tensors = {n: v for n, v in x.items() if isinstance(v, torch.Tensor)}
    numbers = {n: v for n, v in x.items() if not isinstance(v, torch.Tensor)}
    for cascade, parts in backward.cascades:
        assert parse(show(cascade)) == cascade
        found = interpret(pipeline.run(cascade, 4, 2) if fused else cascade, env, corpus.SIZES)
        env |= found
        for part in parts:
            accumulate(total, cascade, part, found[part.statement], Given(tensors, numbers, corpus.SIZES))
    return total


def agree(c: Cascade, fused: bool) -> None:
    """Raises AssertionError where a derived gradient is not what torch finds through the interpreter."""
    x = corpus.inputs(c, seed=3, grad=True)
    truth = interpret(c, x, corpus.SIZES)
    generator = torch.Generator().manual_seed(4)
    directions = {n: torch.randn(o.shape, dtype=torch.float64, generator=generator) for n, o in truth.items()}
    leaves = {n: v for n, v in x.items() if isinstance(v, torch.Tensor) and v.requires_grad}
    expected = torch.autograd.grad(list(truth.values()), list(leaves.values()), list(directions.values()), allow_unused=True)
    with torch.no_grad():
        found = derived(c, x, directions, fused)
    for (n, leaf), g in zip(leaves.items(), expected, strict=True):
        g = torch.zeros_like(leaf) if g is None else g
        torch.testing.assert_close(
            found.get(n, torch.zeros_like(leaf)), g, rtol=1e-9, atol=1e-9, msg=functools.partial("d {}: {}".format, n)
        )


@pytest.mark.parametrize("fused", [False, True], ids=["as derived", "fused"])
@pytest.mark.parametrize("name", list(corpus.BODIES))
def test_gradients_equal_autograd(name: str, fused: bool) -> None:
    agree(corpus.cascade(name), fused)


BRANCHES = {
    "a bound that shifts with the maximum": "sum[j](w * v) / max(sum[j](w), 12 * exp(-m))",
    "a bound from above": "sum[j](w * v) / min(sum[j](w), 12 * exp(-m))",
    "signs": "sum[j](w * u * v) / max(abs(sum[j](w * u)), exp(-m))",
    "a choice": "sum[j](w * v) / (sum[j](w) if sum[j](w) > 12 * exp(-m) else exp(-m))",
}
"""Rows over which a maximum m cancels on every branch, though not by the same sums: mLSTM (Beck et al., 2024) divides by the third."""


@pytest.mark.parametrize("row", BRANCHES.values(), ids=BRANCHES)
def test_a_maximum_stabilises_on_every_branch_or_has_its_adjoint(row: str) -> None:
    text = """attention f over b, h {
  rank i: query; rank j: key; rank d: feature; rank e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in u[b, j]
  s = sum[d](q * k)
  m = max[j](s)
  w = exp(s - m)
  o[i, e] = ROW
  out o
}""".replace("ROW", row)
    agree(dsl.compile_text(text), fused=False)


def test_a_deferred_statistic_costs_no_backward_pass() -> None:
    canonical = canonicalise.run(corpus.cascade("softmax"))
    backward = differentiate.run(canonical, ["q", "k", "v", "slope"])
    names = [c.name for c, _ in backward.cascades]
    assert names == ["softmax_prepass", "softmax_rows", "softmax_columns_j"]
    prepass = backward.cascades[0][0]
    assert not canonicalise.fold_ranks(prepass)  # only sums over features: the saved output stands for the sum over keys
    assert set(backward.saved) == {"m", "l", "o"}


def test_a_stabiliser_has_no_adjoint() -> None:
    canonical = canonicalise.run(corpus.cascade("softmax"))
    for cascade, _ in differentiate.run(canonical, ["q", "k", "v"]).cascades:
        assert "d_m" not in show(cascade)


def test_only_what_is_wanted_is_computed() -> None:
    canonical = canonicalise.run(corpus.cascade("softmax"))
    backward = differentiate.run(canonical, ["q"])
    assert [c.name for c, _ in backward.cascades] == ["softmax_rows"]


@pytest.mark.parametrize("name", ["rotary", "places"])
def test_reads_of_a_row_add_up_inside_the_kernel(name: str) -> None:
    canonical = canonicalise.run(corpus.cascade(name))
    for cascade, parts in differentiate.run(canonical, ["q", "k"]).cascades:
        for part in parts:
            assert part.index[-1].op == "index"
            assert [r for r in part.ranks if cascade.rank(r).kind == "feature"] == [part.index[-1].name]


def test_places_of_two_ranks_are_written_out() -> None:
    canonical = canonicalise.run(flat(parse(show(corpus.cascade("rotary")).replace("(d + D // 2) % D", "(d + i) % D"))))
    parts = [p for _, parts in differentiate.run(canonical, ["q"]).cascades for p in parts]
    assert {p.index[-1].op for p in parts} == {"index", "%"}, "ones and zeros would be a matrix for every row"


def test_a_shifted_read_of_a_statement_is_refused_with_a_way_out() -> None:
    text = show(corpus.cascade("full")).replace("exp(s[i, j] - m[i])", "exp(s[i, j] - m[i]) * m[max(i - 1, 0)]")
    with pytest.raises(SpecError, match="shifted read of m") as caught:
        differentiate.run(canonicalise.run(flat(parse(text))), ["q"])
    assert "shift the input itself" in caught.value.hint
