"""Maps that the numerical rank test must be able to sample: an error function, and a choice by a captured condition."""

from __future__ import annotations

import einfuse

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
