"""What is one along the diagonals of a pair is computed once for each of them, and nothing else is."""

import pytest
from plans import Code

import einfuse
from einfuse.codegen.cpu.diagonals import along, steps
from einfuse.codegen.plan import Store
from einfuse.runtime.verify import Shape

PAIR = ("i", "j")
SPEC = """
attention distances(near: int = 9) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in slope[h]
  in table[h, 2 * near + 1]
  far = log(1 + abs(i - j)) * slope + table[h, min(max(j - i, -near), near) + near]
  s = sum[d](q * k) / sqrt(D) + far where MASK
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""


def test_what_changes_along_a_diagonal() -> None:
    c = Code((*PAIR, "e"))
    i, j, e = map(c.coordinate, (*PAIR, "e"))
    apart, late = c.map("apart", "-", i, c.map("next", "+", j, c.const("one", 1))), c.map("late", "<=", j, i)
    c.map("both", "+", i, j)
    c.map("real", "float", i)
    c.map("ahead", "<", apart, e)
    c.map("near", "<", apart, i)
    c.load("by_row", "x", i)
    c.load("by_distance", "x", apart)
    c.load("by_both", "y", apart, e)
    c.load("where", "x", apart, where=late)
    found = steps(c.ops, PAIR, {"before": 1})
    assert found == {
        "i": 1,
        "j": 1,
        "one": 0,
        "next": 1,
        "apart": 0,
        "late": 0,
        "both": 2,
        "by_distance": 0,
        "where": 0,
        "before": 1,
    }


def test_what_is_cheap_or_a_side_of_a_product_is_computed_for_pairs() -> None:
    c = Code((*PAIR, "e"))
    i, j = map(c.coordinate, PAIR)
    apart = c.map("apart", "-", i, j)
    bias, cheap = c.load("bias", "x", apart), c.map("cheap", "abs", apart)
    weight = c.map("weight", "log", c.map("real", "float", cheap))
    c.dot("o", weight, c.load("v", "v", j, c.coordinate("e")), "j")
    c.map("s", "+", c.map("more", "+", c.load("qk", "y", i, j), bias), c.map("far", "float", cheap))
    inside = {op.out.name: op for op in c.ops if not isinstance(op, Store)}
    nest = along(c.ops, inside, PAIR, steps(c.ops, PAIR, {}))
    assert nest is not None
    assert nest.kept == (bias,)
    assert (nest.dims, nest.diagonal) == (("j",), "i")


@pytest.mark.parametrize("mask", ["true", "j <= i + 3", "i - j < 20 and j - i < 70", "pad[b, j]"])
def test_distances(mask: str) -> None:
    text = SPEC.replace("MASK", mask).replace("in slope", "in pad[b, j]: bool\n  in slope" if "pad" in mask else "in slope")
    attn = einfuse.compile(text, backend="cpu")
    for shape in (Shape(2, 2, 101, 77, group=2), Shape(1, 2, 1, 90), Shape(1, 2, 70, 3)):
        found = einfuse.verify(attn, backends=["cpu"], dtypes=["float32"], shape=shape, brief=True)
        assert found.ok, found
    assert "diagonals" in attn.source("cpu")
