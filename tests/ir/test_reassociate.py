"""Weights of finite rank: what is found, that the linear form means the same, and why others have none."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse import dsl
from einfuse.ir import Cascade, Fold, interpret
from einfuse.ir.cut import NotFactorableError
from einfuse.ir.passes import factorisation, reassociate
from einfuse.ir.text import parse, show
from einfuse.ir.verify import verify
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

HEAD = """attention t over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in c[h]
  in pad[b, j]: bool
  in bias[b, h, i, j]
"""
S = "  s = sum[d](q * k)"
MASKS = ("", " where j <= i", " where j <= i + Nk - Nq", " where pad", " where j <= i and pad")


def built(body: str) -> Cascade:
    return dsl.compile_text(f"{HEAD}{body}\n}}")


def agree(c: Cascade, width: int = 3, seed: int = 0) -> Cascade:
    """Both forms by the interpreter in float64; the linear one."""
    shape = Shape(2, 4, 11, 11 if factorisation.find(c).causal else 7, (width, 4), 2)
    x, sizes = example_inputs(c, torch.float64, seed, shape), example_sizes(c, shape)
    linear = verify(reassociate.run(c, sizes))
    assert parse(show(linear)) == linear
    wanted, found = interpret(c, x, sizes), interpret(linear, x, sizes)
    assert wanted.keys() == found.keys()
    for name, truth in wanted.items():
        scale = truth[truth.isfinite()].abs().max().item()
        torch.testing.assert_close(found[name], truth, rtol=1e-10, atol=1e-10 * max(scale, 1.0), equal_nan=True)
    return linear


FEATURES = st.sampled_from(
    ["q * k", "relu(q) * relu(k)", "elu(q) * exp(0.3 * k)", "cos(q) * cos(k)", "q * k * c", "(q + i) * k / (1 + d)"]
)
NUMBERS = st.sampled_from([0, 1, -1, 0.5, 2])


# Others: `--hypothesis-profile=fresh`.
@pytest.mark.slow
@settings(max_examples=25)
@given(
    features=FEATURES,
    numbers=st.tuples(NUMBERS, NUMBERS, st.sampled_from([0, 1, 0.5])).filter(any),
    cubed=st.booleans(),
    normalised=st.booleans(),
    mask=st.sampled_from(MASKS),
    width=st.sampled_from([1, 2, 3, 4]),
    seed=st.integers(0, 99),
)
def test_random_polynomials_mean_the_same(
    features: str, numbers: tuple[float, float, float], cubed: bool, normalised: bool, mask: str, width: int, seed: int
) -> None:
    a, b, c = numbers
    p = f"  p = {a} + {b} * s + {c} * s * s" + (" + s ^ 3" if cubed else "")
    end = " / (1000 + sum[j](p))" if normalised else ""
    agree(built(f"  s = sum[d]({features}){mask}\n{p}\n  o = sum[j](p * v){end}\n  out o"), width, seed)


CONSTANT = [("1 + 0 * s", m) for m in MASKS] + [("exp(-abs(c) * (i - j)) + 0 * s", m) for m in MASKS if "j <= i" in m]


@pytest.mark.parametrize(("weight", "mask"), CONSTANT)
def test_a_sum_of_constant_weights_counts_the_keys_that_exist(weight: str, mask: str) -> None:
    """Found at random: where no key takes part in a weight, the sum of the weights has no factor that a mask of keys could stand on."""
    agree(built(f"{S}{mask}\n  p = {weight}\n  o = sum[j](p * v) / (1000 + sum[j](p))\n  out o"))


@pytest.mark.parametrize(
    "decay", ["exp(-abs(c) * (i - j))", "exp(0.1 * j - 0.1 * i)", "0.9 ^ (i - j)", "exp(-0.2 * (i - j) + c)"]
)
def test_a_decay_between_positions_is_one_of_the_scan(decay: str) -> None:
    linear = agree(built(f"{S} * {decay} where j <= i\n  o = sum[j](s * v) / (9 + abs(sum[j](s)))\n  out o"))
    (fold,) = [x for x in linear.body if isinstance(x, Fold)]
    assert fold.sequential
    with pytest.raises(NotFactorableError, match="a decay over all of j grows"):
        factorisation.find(built(f"{S} * {decay}\n  o = sum[j](s * v)\n  out o"))


@pytest.mark.parametrize("mask", ["", " and pad"])
def test_in_blocks_near_weights_are_as_written(mask: str) -> None:
    body = (
        f"{S} where j <= i{mask}\n  p = 1 + s + s ^ 2 * exp(-abs(c) * (i - j))\n  o = sum[j](p / (4 + sum[j](p)) * v)\n  out o"
    )
    linear = agree(built(body))
    (fold,) = [x for x in linear.body if isinstance(x, Fold)]
    assert fold.step == 64
    pairs = [x for x in fold.einsums if {"i", "i_2"} <= set(x.ranks) and x.reducer.sums]
    assert pairs
    assert all(x.over == ("d",) for x in pairs)


def test_two_scores_and_several_outputs() -> None:
    body = f"{S}\n  t = sum[d](abs(q) * abs(k))\n  l = sum[j](t)\n  o = sum[j]((s * t + 0.5) * v) / l\n  u = sum[j](t * t * v)\n  out o, l, u"
    agree(built(body))


@pytest.mark.parametrize("mask", ["", " where j <= i"])
def test_factors_of_two_coordinates_at_once(mask: str) -> None:
    agree(built(f"  s = sum[d, e]((q - v[b, h // group, i, e]) * k * v){mask}\n  o = sum[j](s * v)\n  out o"), width=2)


@pytest.mark.parametrize(
    ("p", "rank", "at_4"),
    [
        ("s", "D", 4),
        ("1 + s + 0.5 * s * s", "D * (D // 2 + 1) + D + 1", 17),
        ("(1 + s) ^ 2", "D * (D // 2 + 1) + D + 1", 17),
        ("s ^ 2", "D * (D // 2 + 1)", 12),
        ("s ^ 3", "D * D * D", 64),
        ("1 + s - s", "D + 1", 5),
    ],
)
def test_the_rank_is_counted(p: str, rank: str, at_4: int) -> None:
    found = factorisation.find(built(f"{S}\n  o = sum[j](({p}) * v)\n  out o"))
    assert (found.show(), found.rank({"D": 4})) == (rank, at_4)
    assert found.sampled <= found.rank({"D": 2})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{S}\n  o = sum[j](exp(s) * v)\n  out o", "no finite rank across i | j"),
        (f"{S}\n  o = sum[j](relu(s) * v)\n  out o", "no finite rank across i | j"),
        (f"{S}\n  o = sum[j](softmax[j](s) * v)\n  out o", "s_max is a max over j"),
        (f"{S} where 0 <= i - j and i - j < 4\n  o = sum[j](s * v)\n  out o", "under `i - j < 4` no running sum"),
        (f"{S} where j <= i + 1\n  o = sum[j](s * v)\n  out o", "under `j <= i \\+ 1` no running sum"),
        (f"{S} + bias\n  o = sum[j](s * v)\n  out o", "bias.* is a tensor over i and j"),
        (f"{S}\n  o = sum[j](s * v)\n  out o, s", "the output s is a number for every pair"),
        (f"{S} * exp(0.01 * (i + j))\n  o = sum[j](s * v)\n  out o", "is no decay between two positions"),
        (f"{S}\n  m = mean[j](s)\n  o = sum[j]((s - m) ^ 2 * v)\n  out o", "a difference of moments"),
        ("  s = max[d](q * k)\n  o = sum[j](s * v)\n  out o", "s is a max over d for every pair"),
        ("  o = sum[j](v)\n  out o", "sums over no pairs"),
        (
            f"{S} where j <= i\n  o = sum[j](s * v)\n  y = sum[j](v)\n  out o, y",
            "y reduces over j, which a scan would go along",
        ),
        (
            f"  rank w: key\n  in w_keys[b, h, w, d]\n{S} where j <= i\n  t[i, w] = sum[d](q * w_keys)\n  o = sum[j](s * v)\n  out o, t",
            "t has points along w, and a scan along i alone",
        ),
    ],
)
def test_a_refusal_says_why(body: str, reason: str) -> None:
    with pytest.raises(NotFactorableError, match=reason):
        factorisation.find(built(body))
    assert factorisation.obstacle(built(body))


def test_a_flat_rank_needs_its_width() -> None:
    with pytest.raises(NotFactorableError, match="the size D of d must be known"):
        reassociate.run(built(f"{S}\n  o = sum[j](s * s * v)\n  out o"))
