"""A table of 16 bits is read and widened: what has features decides in which precision an attention computes, and the dtype of its outputs."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.flex import flex_attention
from einfuse.runtime.attention import Output
from einfuse.runtime.backends import BackendName

FOLD = """attention tables over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in slope[h]
  in bias[b, h, i, j]
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in column[b, j]
  in gate[b, i]
  s = sum[d](q * k) + slope * (j - i) + bias + column where j <= i + 2
  m = max[j](s)
  p = exp(s - m)
  l = sum[j](p)
  o[i, e] = gate * sum[j](p * v) / l
  out o, l
}"""
SCAN = """attention decayed over b, h {
  rank i: query; rank d, e: feature
  in g[b, i]
  in q[b, h, i, d]
  in k[b, h, i, d]
  in v[b, h, i, e]
  scan i {
    state S[d, e] = exp(-abs(g)) * S + k * v
    o[i, e] = sum[d](q * S)
  }
  out o
}"""
BACKENDS = ["torch", pytest.param("cpu", marks=pytest.mark.slow), pytest.param("triton", marks=pytest.mark.slow)]
BF, HALF, SINGLE, DOUBLE = torch.bfloat16, torch.float16, torch.float32, torch.float64


def drawn(attention: einfuse.Attention, wide: torch.dtype, narrow: Mapping[str, torch.dtype]) -> dict[str, torch.Tensor]:
    """Arguments of ``wide``, but for those of other dtypes; all want gradients."""
    torch.manual_seed(0)
    sizes = {"B": 2, "H": 2, "Nq": 21, "Nk": 21, "N": 21, "D": 8, "E": 16}
    out = {}
    for t in attention.cascade.inputs:
        x = 0.5 * torch.randn([sizes[str(a.value)] for a in t.axes], dtype=DOUBLE)
        out[t.name] = x.to(narrow.get(t.name, wide)).requires_grad_()
    return out


def results(outs: Output, leaves: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs and gradients along fixed directions."""
    every = outs if isinstance(outs, tuple) else (outs,)
    torch.manual_seed(1)
    along = [torch.randn(o.shape, dtype=DOUBLE).to(o.dtype) for o in every]
    grads = torch.autograd.grad(every, list(leaves.values()), along)
    return {f"out {n}": o.detach() for n, o in enumerate(every)} | {f"d {n}": g for n, g in zip(leaves, grads, strict=True)}


def check(attention: einfuse.Attention, wide: torch.dtype, narrow: Mapping[str, torch.dtype]) -> None:
    """Outputs and gradients have the dtypes that they should have, and errors of these dtypes."""
    leaves = drawn(attention, wide, narrow)
    found, truth = results(attention(**leaves), leaves), results(attention.reference(**leaves, dtype=torch.float64), leaves)
    for name, x in found.items():
        own = leaves[name.removeprefix("d ")].dtype if name.startswith("d ") else wide
        assert x.dtype == own, name
        error = (x.double() - truth[name].double()).abs().max() / truth[name].abs().max()
        assert error <= 20 * torch.finfo(own).eps, (name, error)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", [FOLD, SCAN], ids=["fold", "scan"])
def test_tables_of_16_bits_cost_no_precision(text: str, backend: BackendName) -> None:
    attention = einfuse.compile(text, backend=backend)
    tables = [t.name for t in attention.cascade.inputs if t.name not in ("q", "k", "v")]
    check(attention, SINGLE, dict(zip(tables, (BF, HALF, BF, HALF), strict=False)))


@pytest.mark.parametrize("wide", [SINGLE, DOUBLE], ids=["float32", "float64"])
@pytest.mark.parametrize("table", ["slope", "bias", "column", "gate"])
def test_one_table_of_16_bits_costs_no_precision(table: str, wide: torch.dtype) -> None:
    attention = einfuse.compile(FOLD, backend="torch")
    check(attention, wide, {table: BF})


@pytest.mark.parametrize(("own", "table"), [(BF, SINGLE), (SINGLE, BF), (SINGLE, DOUBLE), (DOUBLE, BF)])
def test_what_has_features_decides_the_dtype_in_every_way_to_run(own: torch.dtype, table: torch.dtype) -> None:
    """Also where tables are declared first: calls, parts of the keys and their merge, prefixes, and steps of a scan."""
    attention = einfuse.compile(FOLD, backend="torch")
    x = {n: t.detach() for n, t in drawn(attention, own, dict.fromkeys(("slope", "bias", "column", "gate"), table)).items()}
    wide = DOUBLE if DOUBLE in (own, table) else SINGLE
    o, row = attention(**x)
    assert (o.dtype, row.dtype) == (own, wide)
    state = attention.merge(attention.state(**x, keys=(0, 9)), attention.state(**x, keys=(9, 21)))
    assert {s.dtype for s in state.tensors.values()} == {wide}
    for found, rows in (attention.finalise(state), o), (tuple(p[:, :, -1] for p in attention.prefix(**x)), o):
        assert found[0].dtype == own
        torch.testing.assert_close(found[0], rows, rtol=16 * torch.finfo(own).eps, atol=16 * torch.finfo(own).eps)
    scan = einfuse.compile(SCAN, backend="torch")
    x = {n: t.detach() for n, t in drawn(scan, own, {"g": table}).items()}
    step, states = scan.step(None, **x)
    assert isinstance(states, tuple)
    assert (only(step).dtype, {s.dtype for s in states}) == (own, {wide})
    torch.testing.assert_close(step, scan(**x))


def test_a_captured_table_of_16_bits_costs_no_precision() -> None:
    q, k, v = (torch.randn(1, 2, 33, 16) for _ in range(3))
    table = torch.randn(33)
    exact = table.to(BF)
    found = flex_attention(q, k, v, lambda s, b, h, i, j: s + exact[j])
    scores = q.double() @ k.double().mT / 4 + exact.double()
    torch.testing.assert_close(found, (scores.softmax(-1) @ v.double()).float(), rtol=2e-6, atol=2e-6)


def test_tensors_with_features_of_two_dtypes_are_refused() -> None:
    attention = einfuse.compile("full", backend="torch")
    q, k, v = (torch.randn(1, 2, 9, 8) for _ in range(3))
    for args in ((q, k, v.to(BF)), (q.double(), k, v), (q.half(), k.to(BF), v.half())):
        with pytest.raises(TypeError, match=r"must share one dtype, found q: torch\.\w+, k: torch\.\w+, v: torch\.\w+"):
            attention(*args)
        with pytest.raises((TypeError, ValueError), match="dtype"):
            flex_attention(*args)
