"""Heads that a row did not choose are not computed for it: rows routed by lists, beside the oracle with the same lists."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import einfuse
from einfuse.ir.passes import lift, routed
from einfuse.ir.text import parse, show
from einfuse.runtime.backends import BackendName
from einfuse.runtime.graph import Kernel, Part
from einfuse.runtime.inside import graphs

HEADS = """
attention heads over b, h {
  rank i: query; rank j: key; rank n: feature = S; rank d, e: feature
  in q[b, h, i, d]; in k[b, h // group, j, d]; in v[b, h // group, j, e]; in w[b, h, i]; in chosen[b, i, n]: int
  s = sum[d](q * k) / sqrt(D) where j <= i and h in chosen[b, i]
  o[i, e] = w * sum[j](softmax[j](s) * v) + 1
  l[i] = log_sum_exp[j](s)
  out o, l
}
"""
FLOATS = ("q", "k", "v", "w")
GATED = """
attention gated over b {
  rank h: head; rank i: query; rank j: key; rank n: feature = 2; rank d, e: feature
  in q[b, h, i, d]; in k[b, h // group, j, d]; in v[b, h // group, j, e]; in w[b, h, i]
  sel[i, n] = topk[h -> n](w)
  p = softmax[h](w)
  s = sum[d](q * k) / sqrt(D) where h in sel[i]
  o[h, i, e] = p * sum[j](softmax[j](s) * v) where h in sel[i]
  out o
}
"""


def drawn(seed: int, heads: int = 6, rows: int = 150) -> dict[str, Tensor]:
    """Rows that choose a head twice, one that is none, and none at all."""
    g = torch.Generator().manual_seed(seed)
    chosen = torch.randint(-1, heads + 1, (2, rows, 2), generator=g)
    chosen[:, 7], chosen[1, :, 0] = -1, heads - 1  # every row of a batch wants one head
    shapes = {"q": (2, heads, rows, 8), "k": (2, heads // 2, rows, 8), "v": (2, heads // 2, rows, 5), "w": (2, heads, rows)}
    return {n: torch.randn(s, generator=g) for n, s in shapes.items()} | {"chosen": chosen}


def kernels(attention: einfuse.Attention, x: dict[str, Tensor]) -> list[list[str]]:
    """Those of a forward and of a backward."""
    return [[y.label for y in graph.nodes if isinstance(y, Kernel)] for graph in graphs(attention, x, {}, backward=True)]


ROWS = [
    ["heads_routed", "heads_finalise"],
    ["heads_prepass", "heads_rows_routed", "heads_rows_finalise", "heads_columns_j_gathered"],
]
KEYS = [
    ["heads_gathered"],
    ["heads_prepass", "heads_rows_gathered", "heads_columns_j_routed", "heads_columns_j_finalise"],
]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize(("lister", "expected"), [("i", ROWS), ("j", KEYS)])
def test_what_lists_route_is_the_oracle(lister: str, expected: list[list[str]], backend: BackendName) -> None:
    """Values and gradients where queries or keys choose heads; outputs of a row that reads none are what no points at all give."""
    spec = HEADS.replace("chosen[b, i", f"chosen[b, {lister}")
    attention, x = einfuse.compile(spec, backend=backend), drawn(0)
    assert kernels(attention, x) == expected
    low = {n: y.clone().requires_grad_(n in FLOATS) for n, y in x.items()}
    exact = {n: y.double().requires_grad_() if n in FLOATS else y for n, y in x.items()}
    found, truth = attention(**low), attention.reference(**exact, dtype=torch.float64)
    assert isinstance(found, tuple)
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    up = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(found[0], [low[n] for n in FLOATS], up)
    want = torch.autograd.grad(truth[0], [exact[n] for n in FLOATS], up.double())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)


def test_heads_are_routed_where_few_are_chosen() -> None:
    """Two of two heads are all of them: nothing is left out, and tables do as well."""
    for heads, listed in ((6, True), (2, False)):
        attention, x = einfuse.compile(HEADS, backend="cpu"), drawn(1, heads)
        assert attention.selection is not None
        reader, _ = attention.selection.reader(dict(x))
        assert (reader is attention.selection.listed) == listed


def test_threads_give_the_same_bits() -> None:
    attention, x, threads = einfuse.compile(HEADS, backend="cpu"), drawn(2), torch.get_num_threads()

    def all_of(workers: int) -> list[Tensor]:
        torch.set_num_threads(workers)
        low = {n: y.clone().requires_grad_(n in FLOATS) for n, y in x.items()}
        outs = attention(**low)
        return [*outs, *torch.autograd.grad(outs[0].square().sum(), [low[n] for n in FLOATS])]

    try:
        assert all(map(torch.equal, all_of(1), all_of(2)))
    finally:
        torch.set_num_threads(threads)


def test_which_list_a_row_has_may_be_data() -> None:
    """Lists are sorted before a kernel runs: what only its values tell is read from tables."""
    spec = HEADS.replace("chosen[b, i, n]", "chosen[b, i, t, n]").replace("chosen[b, i]", "chosen[b, i, kind[i]]")
    spec = spec.replace("rank n", "rank t: feature = 2; rank n").replace("  in q", "  in kind[i]: int; in q")
    attention, x = einfuse.compile(spec, backend="torch"), drawn(4)
    x["chosen"], x["kind"] = torch.stack([x["chosen"], x["chosen"].roll(1, 1)], 2), torch.arange(150) % 2
    truth = attention.reference(**{n: y.double() if n in FLOATS else y for n, y in x.items()}, dtype=torch.float64)
    for a, b in zip(attention(**x), truth, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


def test_a_routed_cascade_is_a_text_and_another_table_routes_nothing() -> None:
    selection = einfuse.compile(HEADS).selection
    assert selection is not None
    assert selection.listed is not None
    cascade = selection.chosen.rest
    (table,) = (t.name for t in cascade.inputs if t.dtype == "bool")
    found = routed.find(cascade, table)
    assert found is not None
    assert (found.chosen, found.rows, found.columns, found.lister, found.others) == ("h", "i", "j", "i", ("b",))
    made = routed.run(found, 128).cascade
    assert show(parse(show(made))) == show(made)
    columns = einfuse.compile(HEADS.replace("chosen[b, i", "chosen[b, j")).selection
    assert columns is not None
    turned = routed.find(columns.chosen.rest, table)
    assert turned is not None
    gathered = routed.gathered(turned)
    text = show(gathered.cascade)
    assert show(parse(text)) == text
    assert f"j < {gathered.count}[b, h]" in text
    assert routed.find(cascade, "q") is None


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_gates_of_all_heads_are_made_before_heads_are_routed(backend: BackendName) -> None:
    """A softmax over heads needs all of them; what follows is one problem for each head, and lists route its rows."""
    attention, x = einfuse.compile(GATED, backend=backend), {n: y for n, y in drawn(3).items() if n != "chosen"}
    assert attention.selection is not None
    reader, mine = attention.selection.reader(dict(x))
    assert reader is attention.selection.listed
    lists = {n: y for n, y in mine.items() if isinstance(y, Tensor)}
    parts = [y.graph for y in graphs(reader, lists, {})[0].nodes if isinstance(y, Part)]
    labels = [y.label for y in parts[1].nodes if isinstance(y, Kernel)]
    assert labels == ["gated_of_h_routed", "gated_of_h_finalise"]
    low = {n: y.clone().requires_grad_() for n, y in x.items()}
    exact = {n: y.double().requires_grad_() for n, y in x.items()}
    found, truth = attention(**low), attention.reference(**exact, dtype=torch.float64)
    assert isinstance(found, Tensor)
    assert isinstance(truth, Tensor)
    torch.testing.assert_close(found.double(), truth, rtol=1e-5, atol=1e-5)
    up = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    got = torch.autograd.grad(found, list(low.values()), up)
    want = torch.autograd.grad(truth, list(exact.values()), up.double())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "rest",
    [
        "s = sum[d](q * k)\n p[h, i, j] = softmax[h](s)\n o[h, i, e] = sum[j](p * v)",  # heads compete for a key
        "s = sum[d](q * k)\n r[h, i, e] = sum[j](softmax[j](s) * v)\n o[i, e] = sum[h](r)",  # heads are added up
        "s = sum[d](q * k)\n r[h, i, e] = sum[j](softmax[j](s) * v)\n o[h, i, e] = r[(h + 1) % H, i, e]",  # the next head's
    ],
)
def test_a_rank_whose_points_depend_on_each_other_stays_held(rest: str) -> None:
    head = GATED.split("  sel")[0].replace(" in w[b, h, i]", "")
    assert lift.run(einfuse.compile(f"{head}  {rest}\n  out o\n}}").cascade, "h") is None
