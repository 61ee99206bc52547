"""Maps that the numerical rank test must be able to sample: an error function, and a choice by a captured condition."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp

import einfuse
from einfuse.ir import separability

HEAD = """
attention f over b {
  rank i: query; rank j: key; rank d: feature
  in q[b, i, d]
  in k[b, j, d]
  in flag[b, j]: bool
  s = sum[d](q * k)
"""


def test_an_error_function_of_a_statistic() -> None:
    attention = einfuse.compile(HEAD + "  o[i] = sum[j](gelu(s / sqrt(sum[j](s * s) + 1)))\n  out o\n}")
    assert [r.after for r in attention.passes()] == [2]


def test_a_choice_by_a_condition_that_no_statistic_decides() -> None:
    attention = einfuse.compile(
        HEAD + "  m = sum[j](s * s) + 1\n  o[i] = sum[j](s / m if flag else 0)\n  out o\n}", backend="torch"
    )
    assert einfuse.verify(attention, backends=["torch"], dtypes=["float32"], brief=True).ok


def test_a_choice_between_conditions_is_sampled_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """sympy's own printer simplifies such a condition first, which takes minutes where it is long."""

    def simplified(e: sp.Expr) -> None:
        raise AssertionError(f"{e} was simplified")

    monkeypatch.setattr("sympy.logic.boolalg.simplify_logic", simplified)
    a, b, c = sp.symbols("a b c", real=True)
    inner = sp.Piecewise((a, b > c), (b - a, True))
    outer = sp.Piecewise((inner, inner > sp.Piecewise((b, c > a), (c, True))), (c * inner, True))
    assert outer.has(sp.ITE)
    x, y, z = np.random.default_rng(0).normal(size=(3, 500))
    first = np.where(y > z, x, y - x)
    found = separability._compiled((a, b, c), outer)(x, y, z)
    np.testing.assert_array_equal(found, np.where(first > np.where(z > x, y, z), first, z * first))
