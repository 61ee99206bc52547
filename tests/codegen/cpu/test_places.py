"""Tables read at computed places, a vector of them at a time (alike, neighbours, or anything else), and what is added up there."""

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.codegen.cpu.places import by_place
from einfuse.codegen.plan import Reduce, operations, read, show, verify
from einfuse.codegen.plan.interpret import interpret
from einfuse.runtime.verify import Shape

SPEC = """
attention placed over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in at[i, j]: int
  in shown[b, R]: bool
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in table[h, R]
  s = sum[d](q * k) + table[h, at[i, j]] where shown[b, at[i, j]]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""
ENTRIES = 73
PLACES = {
    "alike": lambda i, j: i // 8 + 0 * j,
    "neighbours": lambda i, j: j - i + 36,
    "clipped": lambda i, j: (j - i).clamp(-5, 5) + 5,
    "descending": lambda i, j: i - j + 36,
    "scattered": lambda i, j: (7 * i + 5 * j) % ENTRIES,
}


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("places", PLACES)
def test_places(places: str, strided: bool) -> None:
    n = 37  # two vectors and a part of one
    at = PLACES[places](torch.arange(n)[:, None], torch.arange(n))
    q, k, v = torch.randn(3, 2, 2, n, 8)
    table = torch.randn(ENTRIES, 2).mT if strided else torch.randn(2, ENTRIES)
    shown = torch.rand(2, ENTRIES) < 0.8
    attn = einfuse.compile(SPEC, backend="cpu")
    assert only(attn(at, shown, q, k, v, table)).sub(only(attn.reference(at, shown, q, k, v, table))).abs().max() < 2e-6


WEIGHTS = """
attention by_distance(near: int = 5) over b, h {
  rank i: query; rank j: key; rank d: feature
  rank r: feature = 11
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  s = sum[d](q * k) / sqrt(D) where MASK
  here = PLACE
  o[i, r] = sum[j](softmax[j](s) * (1 if r == here else 0))
  out o
}
"""
"""The weight of keys at every clipped distance, and nothing of those beyond."""
BIAS = """
attention learned over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in pad[b, j]: bool
  in bias[h, 11]
  in rows[b, h, i, 11]
  in columns[b, h, j, 11]
  here = min(max(j - i, -5), 5) + 5
  s = sum[d](q * k) / sqrt(D) + bias[h, (7 * i + 5 * j) % 11] + rows[b, h, i, here] + columns[b, h, j, 10 - here] where MASK
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""
MASKS = ["true", "j <= i + 3", "i - j < 20 and j - i < 40", "pad[b, j]"]


@pytest.mark.parametrize("mask", MASKS[:3])
@pytest.mark.parametrize("place", ["min(max(j - i, -near), near) + near", "i - j + near", "(7 * i + 5 * j) % 13"])
def test_sums_by_place(place: str, mask: str) -> None:
    attn = einfuse.compile(WEIGHTS.replace("PLACE", place).replace("MASK", mask), backend="cpu")
    plan = attn.plan("cpu", torch.float32, D=8)
    after = by_place(plan)
    sums = [op for op in operations(after) if isinstance(op, Reduce) and "r" in op.out.dims]
    assert sums
    assert all(op.at is not None and op.arg.dims == ("i", "j") for op in sums)
    assert read(show(after)) == after
    found = einfuse.verify(attn, backends=["cpu"], dtypes=["float32"], shape=Shape(2, 4, 61, 77, group=2), brief=True)
    assert found.ok, found


def test_a_plan_with_sums_by_place_means_the_same() -> None:
    attn = einfuse.compile(WEIGHTS.replace("PLACE", "j - i + near").replace("MASK", "j <= i + 3"), backend="cpu")
    plan = attn.plan("cpu", torch.float64, D=4)
    after = by_place(plan)
    verify(after)
    sizes = {"B": 1, "H": 2, "Nq": 5, "Nk": 7, "D": 4, "group": 1}
    q, k = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (5, 7))
    outs = []
    for p in (plan, after):
        made = {t.name: torch.full((1, 2, 5, 11)[: t.axes], torch.nan, dtype=torch.float64) for t in p.tensors if t.out}
        interpret(p, {"q": q, "k": k, **made}, {"near": 5}, sizes)
        outs.append(made["o"])
    torch.testing.assert_close(outs[1], outs[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", MASKS)
def test_gradients_of_tables(mask: str) -> None:
    attn = einfuse.compile(BIAS.replace("MASK", mask), backend="cpu")
    for shape in (Shape(2, 4, 101, 77, group=2), Shape(9, 8, 33, 20), Shape(1, 2, 1, 90)):  # few heads, many, one row
        found = einfuse.verify(attn, backends=["cpu"], dtypes=["float32"], shape=shape, brief=True)
        assert found.ok, found


def test_gradients_of_tables_are_the_same_on_any_number_of_threads() -> None:
    attn = einfuse.compile(BIAS.replace("MASK", "true"), backend="cpu")
    shapes = {"q": (2, 2, 400, 16), "k": (2, 2, 400, 16), "v": (2, 2, 400, 16), "bias": (2, 11), "rows": (2, 2, 400, 11)}
    given = {n: torch.randn(s, requires_grad=True) for n, s in {**shapes, "columns": (2, 2, 400, 11)}.items()}
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = only(attn(**given, pad=torch.ones(2, 400, dtype=torch.bool)))
            found.append(torch.autograd.grad(out.sum(), [given[n] for n in ("bias", "rows", "columns")]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for more in found[1:] for a, b in zip(found[0], more, strict=True))
