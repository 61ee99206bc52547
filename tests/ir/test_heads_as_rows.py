"""Heads as rows: the interpreter before and after, what is left alone, and the kernels of calls with one query."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.ir import interpret
from einfuse.ir.passes import heads_as_rows, split
from einfuse.ir.verify import verify
from einfuse.runtime.backends import BackendName

B, H, GROUP, KEYS, D = 2, 6, 3, 70, 32

PER_HEAD = """attention per_head over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in slope[h]
  in reach[h]: int
  in far[j]
  norm[j] = sum[d](k * k)
  s = (sum[d](q * k) - norm) / sqrt(D) + slope * (j - Nk - i) where j >= i + Nk - reach[h]
  o[i, e] = sum[j](softmax[j](s) * v * far[j])
  z[i] = max[j](s) + h
  out o, z
}"""


def arguments(attention: einfuse.Attention, queries: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Tensors by name; queries and keys are views whose heads lie behind their points."""
    torch.manual_seed(0)
    sizes = {"q": (H, queries), "k": (H // GROUP, KEYS), "v": (H // GROUP, KEYS)}
    found = {n: torch.randn(B, length, heads, D, dtype=dtype).transpose(1, 2) for n, (heads, length) in sizes.items()}
    own = {
        "slope": torch.rand(H, dtype=dtype),
        "far": torch.rand(KEYS, dtype=dtype),
        "reach": torch.tensor([1, 5, 64, 65, 2, 70]),
        "sink": torch.randn(H, dtype=dtype),
    }
    return found | {n: x for n, x in own.items() if n in {t.name for t in attention.cascade.inputs}}


@pytest.mark.parametrize("source", ["full", "sink", "entmax15", "gated_groups", PER_HEAD])
def test_the_cascade_with_heads_as_rows_means_the_same(source: str) -> None:
    attention = einfuse.compile(source)
    given = arguments(attention, dtype=torch.float64)
    given |= {n: torch.randn_like(given[of]) for n, of in (("lq", "q"), ("lk", "k")) if source == "gated_groups"}
    numbers = {t.name: t.default for t in attention.cascade.inputs if t.param and t.default is not None}
    sizes = {"B": B, "H": H, "Nq": 1, "Nk": KEYS, "D": D, "E": D, "group": GROUP}
    found = heads_as_rows.run(attention.cascade)
    assert found is not None
    verify(found.cascade)
    known = {**given, **numbers}
    truth = interpret(attention.cascade, known, sizes)
    made = interpret(found.cascade, known, sizes | {found.groups: H // GROUP})
    for name in attention.cascade.outs:
        torch.testing.assert_close(made[name], truth[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["gat", "squeeze", "talking_heads", "linformer", "column_sums"])
def test_cascades_whose_heads_share_nothing_or_whose_rows_are_read_together_are_left_alone(name: str) -> None:
    assert heads_as_rows.run(einfuse.compile(name).cascade) is None


def test_a_value_of_each_key_and_head_has_no_row_to_be_in() -> None:
    mine = PER_HEAD.replace("sum[d](k * k)", "sum[d](k * k) * slope")
    assert heads_as_rows.run(einfuse.compile(mine).cascade) is None


def test_its_parts_are_put_together_where_the_outputs_lie() -> None:
    found = heads_as_rows.run(einfuse.compile("sink").cascade)
    assert found is not None
    halves = split.run(found.cascade)
    verify(halves.partial)
    verify(halves.merged)
    assert halves.merged.places == found.cascade.places


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_kernels_of_one_query_read_keys_once_a_group(backend: BackendName) -> None:
    attention = einfuse.compile(PER_HEAD, backend=backend)
    given = arguments(attention)
    for name, x in zip(attention.cascade.outs, attention(**given), strict=True):
        truth = attention.reference(**given, dtype=torch.float64)[attention.cascade.outs.index(name)]
        torch.testing.assert_close(x.double(), truth, rtol=1e-5, atol=1e-5)
    heads = attention.program.heads
    assert heads is not None
    assert {kernel.cascade for kernel, _ in heads.program.built} == {heads.program.cascade}  # that kernel, and no other
    assert not attention.program.built


def test_several_queries_and_heads_with_keys_of_their_own_keep_their_tiles() -> None:
    attention = einfuse.compile(PER_HEAD.replace("per_head", "per_head_tiled"), backend="cpu")
    heads = attention.program.heads
    assert heads is not None
    attention(**arguments(attention, queries=2))
    given = arguments(attention)
    attention(**given | {n: given[n].repeat_interleave(GROUP, 1) for n in ("k", "v")})
    assert not heads.program.built
