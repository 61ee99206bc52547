"""Products of rows with the entries of a table: the same numbers, and no features of pairs."""

from __future__ import annotations

import pytest
import torch
from narrowed import flat

import einfuse
from einfuse.ir import Einsum, interpret
from einfuse.ir.passes import look_up
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

SHAPE = Shape(batch=2, heads=2, queries=9, keys=11, widths=(3, 4), group=2)
GRID = """attention grid(reach: int = 3) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in up[h, reach, d, reach]
  in pad[b, j]: bool
  x = (q + 1) * (k - up[h, (i + j) % reach, d, j // 4 - i // 4 + 1] / 2) * (i - j)
  s = sum[d](x) where pad
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


@pytest.mark.parametrize("name", ["shaw", "deberta", GRID], ids=["shaw", "deberta", "grid"])
def test_means_the_same(name: str) -> None:
    c = einfuse.compile(name).cascade
    looked = look_up.run(flat(c))
    ranks = {r.name: r for r in looked.ranks}
    pairs = [x for x in looked.body if isinstance(x, Einsum) and {"i", "j"} <= {*x.ranks}]
    assert len(looked.body) > len(c.body)
    assert all(ranks[r].is_sequence for x in pairs for r in x.ranks)
    inputs, sizes = example_inputs(c, torch.float64, 1, SHAPE), example_sizes(c, SHAPE)
    torch.testing.assert_close(interpret(looked, inputs, sizes), interpret(c, inputs, sizes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["causal", "relative_position", "padded_window", "rope"])
def test_what_reads_no_features_of_pairs_stays(name: str) -> None:
    c = einfuse.compile(name).cascade
    assert look_up.run(flat(c)) is c


def test_large_tables_stay() -> None:
    c = einfuse.compile("shaw", reach=look_up.MOST_ENTRIES // 2).cascade
    assert look_up.run(flat(c)) is c
