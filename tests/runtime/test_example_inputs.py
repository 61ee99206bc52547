"""Example inputs: numbers that the functions of a spec are defined for."""

from __future__ import annotations

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.runtime.verify import Shape, example_inputs

SHAPE = Shape(1, 4, 9, 11, (6, 8), 2)
SCALED = """attention scaled over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, j, d]; in v[b, h, j, e]; in t[h]; in n[h]: int
  s = sum[d](q * k) * FACTOR
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def drawn(factor: str, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    attention = einfuse.compile(SCALED.replace("FACTOR", factor))
    x = example_inputs(attention.cascade, torch.float32, seed, SHAPE)
    t, n = x["t"], x["n"]
    assert isinstance(t, torch.Tensor)
    assert isinstance(n, torch.Tensor)
    return t, n, only(attention.reference(**x, dtype=torch.float64))


DOMAINS = {
    "log(t)": (0, 9),
    "sqrt(t)": (0, 9),
    "t ^ 0.5": (0, 9),
    "log(1 - t)": (-9, 1),
    "sqrt(1 - t * t)": (-1, 1),
    "log(log(t))": (1, 9),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("factor", DOMAINS)
def test_logarithms_and_roots_are_of_what_has_them(factor: str, seed: int) -> None:
    t, _, o = drawn(factor, seed)
    least, most = DOMAINS[factor]
    assert ((least < t) & (t < most)).all()
    assert not o.isnan().any()


@pytest.mark.parametrize("factor", ["(i // n)", "((i + 1) % n)"])
def test_nothing_is_divided_by_0(factor: str) -> None:
    for seed in range(3):
        t, n, _ = drawn(f"t * {factor}", seed)
        assert n.gt(0).all()
        assert t.lt(0).any() or seed, "what need not be positive is not made so"


def test_what_has_no_domain_stays_as_drawn() -> None:
    t, _, o = drawn("log(-1 - abs(t))", 0)
    assert t.lt(0).any()
    assert o.isnan().all()


SCANS = {
    "a gate per point": """attention gated_delta over b, h {
  rank i: query = N; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, i, d]; in v[b, h, i, e]; in beta[b, h, i]; in a[b, h, i]
  f = exp(log(a))
  scan i {
    err = v - f * sum[d](k * S)
    state S[d, e] = f * S + beta * k * err
    o = sum[d](q * S)
  }
  out o
}""",
    "a gate per head, and resets": """attention retention_reset over b, h {
  rank i: query = N; rank d, e: feature
  in q[b, h, i, d]; in k[b, h, i, d]; in v[b, h, i, e]; in lam[h]; in seg[b, i]: int
  keep = 0 if i > 0 and seg[b, i] != seg[b, i - 1] else exp(log(lam))
  scan i {
    state S[d, e] = keep * S + k * v
    o = sum[d](q * S)
  }
  out o
}""",
}


@pytest.mark.parametrize("text", SCANS.values(), ids=list(SCANS))
def test_scans_with_decays_of_logarithms_are_right(text: str) -> None:
    found = einfuse.verify(einfuse.compile(text), backends=["torch"], dtypes=["float32"], shape=SHAPE, brief=True)
    assert found.ok, [r for r in found.rows if not r.ok]


def test_a_comparison_with_no_number_is_not_right() -> None:
    found = einfuse.verify(einfuse.compile(SCALED.replace("FACTOR", "log(-1 - abs(t))")), backends=["torch"], shape=SHAPE)
    assert not found.ok
    assert all(r.error != r.error for r in found.rows if not r.ok)


def test_tables_hold_coordinates_that_their_tensors_have() -> None:
    """Where offsets, rows and columns are drawn apart from one another, only small ones stay inside of a map."""
    attention = einfuse.compile("deformable")
    for seed in range(12):
        x = example_inputs(attention.cascade, torch.float32, seed, Shape(1, 2, 7, 9, (8, 4), 2))
        attention(**x)


def test_tables_that_fit_stay_as_drawn() -> None:
    attention = einfuse.compile(SCALED.replace("FACTOR", "n"))
    largest = max(int(example_inputs(attention.cascade, torch.float32, seed, SHAPE)["n"].max()) for seed in range(9))  # type: ignore[union-attr]
    assert largest == 4
