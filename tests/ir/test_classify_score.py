"""What a score is made of: the record of the pass, on specs of the library and on forms of its own."""

from __future__ import annotations

import pytest
from narrowed import flat

import einfuse
from einfuse.dsl import compile_text
from einfuse.ir.passes import canonicalise, classify_score
from einfuse.ir.passes.classify_score import Score, operands

HEAD = """attention f(cap: float = 5.0) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in slope[h]
  in table[h, W]
  in left[b, h, i]
"""


def score(body: str) -> Score:
    (found,) = classify_score.run(
        canonicalise.run(flat(compile_text(f"{HEAD}{body}\n  o[i, e] = sum[j](softmax[j](s) * v)\n  out o\n}}")))
    )
    return found


@pytest.mark.parametrize(
    ("body", "kinds", "degree", "position", "tables", "bounded"),
    [
        ("s = sum[d](q * k) / sqrt(D) where j <= i", ["bilinear"], 1, "none", (), False),
        ("s = sum[d](q * k) - slope * (i - j)", ["bilinear"], 1, "linear", (), False),
        ("s = sum[d](q * k) - slope * abs(i - j)", ["bilinear"], 1, "offset", (), False),
        ("s = sum[d](q * k) + table[h, j - i + Nq - 1]", ["bilinear"], 1, "offset", ("table",), False),
        ("s = sum[d](q * k) + table[h, j // 2 - i // 2 + Nq]", ["bilinear"], 1, "free", ("table",), False),
        ("x = sum[d](q * k)\n  s = x * x - 2 * x", ["bilinear"], 2, "none", (), False),
        ("s = softcap(sum[d](q * k), cap)", ["bilinear"], None, "none", (), True),
        ("s = min(max(sum[d](q * k), -1), cap)", ["bilinear"], None, "none", (), True),
        ("s = -sum[d]((q - k) ^ 2)", ["distance"], 1, "none", (), False),
        ("s = sum[d](tanh(q + k))", ["additive"], 1, "none", (), False),
        ("s = sum[d](q * table[h, j - i + d])", ["general"], 1, "none", (), False),
        ("s = sum[d](q * k) * left + sum[d](abs(q - k))", ["bilinear", "distance"], 1, "none", (), False),
        ("s = tanh(left * j)", [], 0, "free", (), True),
    ],
)
def test_a_score(
    body: str, kinds: list[str], degree: int | None, position: str, tables: tuple[str, ...], bounded: bool
) -> None:
    found = score(body)
    assert [p.kind for p in found.products] == kinds
    assert (found.degree, found.position, found.tables, found.bounded) == (degree, position, tables, bounded)
    assert (found.name, found.ranks) == ("s", ("i", "j"))


def test_operands_are_two_groups_that_meet_in_one_rank() -> None:
    assert operands([("i", "d"), ("j", "d"), ("i",), ("j", "d")], "d") == ((0,), (1, 3), ())
    assert operands([("i", "d"), ("i", "d")], "d") is None, "a row sum"
    assert operands([("i", "d"), ("j", "d"), ("d",)], "d") == ((0,), (1,), (2,)), "a weight for every feature"
    assert operands([("i", "d"), ("j", "d"), ("r", "d")], "d") is None, "three groups"
    assert operands([("i", "j", "d"), ("j", "d")], "d") is None, "a factor of the pair itself"


def test_every_score_of_a_staged_attention_is_there_once() -> None:
    names = [s.name for s in einfuse.compile("latents").scores()]
    assert len(names) == len(set(names)) == 2
    assert einfuse.compile("retention").scores() == ()
