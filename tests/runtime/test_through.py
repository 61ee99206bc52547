"""Lists that drive the loops of kernels, beside the oracle with the same lists: values and gradients."""

from __future__ import annotations

import pytest
import torch
from listed import by_lists, compared
from torch import Tensor

import einfuse
from einfuse.codegen import KernelPlan
from einfuse.codegen.plan import text as plan_text
from einfuse.ir.passes import through as transform
from einfuse.ir.text import parse, show
from einfuse.runtime import backends, cache, lists, through
from einfuse.runtime.backends import BackendName
from einfuse.runtime.graph import Kernel
from einfuse.runtime.inside import graphs
from einfuse.runtime.specialise import Printed

GIVEN = """
attention given over b, h {
  rank i: query; rank j: key; rank n: feature = S; rank d, e: feature
  in q[b, h, i, d]; in k[b, h // group, j, d]; in v[b, h // group, j, e]; in sel[b, h // group, i, n]: int
  s = sum[d](q * k) / sqrt(D) where j <= i and j // 16 in sel[b, h // group, i]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""
UNMASKED = GIVEN.replace("j <= i and ", "").replace("attention given", "attention unmasked")
SIGMOID = GIVEN.replace("softmax[j](s)", "sigmoid(s)").replace("attention given", "attention sums")
NORMED = GIVEN.replace("sum[d](q * k)", "sum[d](l2_normalise[d](q) * l2_normalise[d](k))").replace(
    "attention given", "attention normed"
)
HELD = UNMASKED.replace("rank i:", "rank g: head = G; rank i:").replace("attention unmasked", "attention held")
for _old, _new in (("h // group", "h"), ("q[b, h, i", "q[b, h, g, i"), ("k[b, h, j", "k[b, h, g, j"), ("o[i", "o[g, i")):
    HELD = HELD.replace(_old, _new)
BLOCKS_OF_ROWS = GIVEN.replace("h // group, i]", "h // group, i // 8]").replace("h // group, i, n]", "h // group, X, n]")
BACKENDS: tuple[BackendName, ...] = ("cpu", "torch", "triton")
N, WIDTH = 150, 16
SPAN = -(-N // WIDTH)


def drawn(seed: int, slots: int = 3, rows: int = N) -> dict[str, Tensor]:
    """Lists with entries that stand twice, that are none, and of rows that read nothing at all."""
    g = torch.Generator().manual_seed(seed)
    sel = torch.randint(-1, SPAN + 1, (2, 1, rows, slots), generator=g)
    sel[:, :, 5] = -1
    shapes = {"q": (2, 2, N, 8), "k": (2, 1, N, 8), "v": (2, 1, N, 5)}
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in shapes.items()} | {"sel": sel}


@pytest.mark.parametrize(
    ("spec", "backend"),
    [
        *(pytest.param(NORMED, b, id=f"normed-{b}") for b in BACKENDS),
        *(pytest.param(HELD, b, id=f"held-{b}") for b in ("cpu", "torch")),
        pytest.param(GIVEN, "cpu", id="causal-cpu"),
        pytest.param(SIGMOID, "cpu", id="sigmoid-cpu"),
    ],
)
def test_kernels_that_lists_drive_are_the_oracle(spec: str, backend: BackendName) -> None:
    attention, x = by_lists(spec, backend), drawn(0)
    if spec == HELD:  # groups of heads that choose together: a state has an axis before that of the rows, and so has d_k
        x |= {"q": x["q"].view(2, 1, 2, N, 8), "k": torch.stack([x["k"], x["k"] + 1], 2)}
    compared(attention, x)
    ran = [x.label for _, g in attention.program.graphs.items() for x in g.nodes if isinstance(x, Kernel)]
    assert sum(x.endswith("_listed") for x in ran) >= 3, "the outputs, the gradients of rows, those of columns"


@pytest.mark.parametrize(("backend", "phases"), [("triton", ["masked", "full", "masked"]), ("cpu", ["masked"])])
def test_rows_behind_a_block_need_no_mask(backend: BackendName, phases: list[str]) -> None:
    """Of the rows that list a block of keys, those that stand behind all of it are gone through without one, where that pays."""
    rows = 400
    g = torch.Generator().manual_seed(7)
    sel = torch.randint(-1, rows // WIDTH, (1, 1, rows, 6), generator=g)
    sel[..., 0] = 1  # every row has it: more than a block of them stand behind it
    shapes = {"q": (1, 2, rows, 8), "k": (1, 1, rows, 8), "v": (1, 1, rows, 5)}
    attention = by_lists(GIVEN, backend)
    compared(attention, {n: torch.randn(x, generator=g, dtype=torch.float64) for n, x in shapes.items()} | {"sel": sel})
    kernels = [y for _, graph in attention.program.graphs.items() for y in graph.nodes if isinstance(y, Kernel)]
    (fold,) = (
        [y for y in kernels if "columns_j" in y.label][-1].printed().plan.folds
    )  # graphs of other back ends may come first
    assert [p.label for p in fold.phases if p.lo != p.hi] == phases


def test_rows_below_a_bound_are_counted_in_every_block() -> None:
    rows = torch.tensor([[0, 2, 5, 1, 5, 4, -1, -1]])
    start = torch.tensor([[0, 3, 3, 5]], dtype=torch.int32)  # 0 2 5 / none / 1 5 / 4
    bounds = {"few": torch.tensor([[2, 3, 6, 0]]), "all": torch.tensor([[9, 6, 9, 5]])}
    found = lists._below(bounds, rows, start, 6)
    assert {n: x.tolist() for n, x in found.items()} == {"few": [[1, 0, 2, 0]], "all": [[3, 0, 2, 1]]}


def test_lists_in_sixteen_bits() -> None:
    compared(by_lists(GIVEN, "cpu"), drawn(1), torch.bfloat16)


def test_rows_may_share_a_list() -> None:
    compared(by_lists(BLOCKS_OF_ROWS, "cpu"), drawn(2, rows=-(-N // 8)))


def test_windows_of_rows_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = {n: y.float() if y.is_floating_point() else y for n, y in drawn(3).items()}
    whole = by_lists(GIVEN, "torch")
    names = [t.name for t in whole.cascade.inputs]
    given = [x.get(n, x["sel"]) for n in names]
    once = whole(*given)
    monkeypatch.setattr(through, "MOST", 70 * 3 * 7)
    whole._calls.known.clear()
    again = whole(*given)
    assert isinstance(once, Tensor)
    assert isinstance(again, Tensor)
    (graph,) = graphs(whole, dict(zip(names, given, strict=True)), {})
    windows = [y for y in graph.nodes if y.label == "group rows"]
    assert len(windows) == 2 * 2 * 2, "every head of every batch, in two windows"
    assert torch.equal(once, again)


def test_lanes_of_rows_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows go from block to block in the same order, however many lanes they are dealt out to."""
    x = {n: y.float() if y.is_floating_point() else y for n, y in drawn(3, rows=300).items()}
    x |= {n: torch.cat([y, y], 2) for n, y in x.items() if n != "sel"}
    attention = by_lists(GIVEN, "cpu")
    given = [
        x.get(t.name, x["sel"]).requires_grad_(x.get(t.name, x["sel"]).is_floating_point()) for t in attention.cascade.inputs
    ]
    lanes, found = [], []
    for most in (lists.LANE, 300):
        monkeypatch.setattr(lists, "LANE", most)
        attention._calls.known.clear()
        attention.program.graphs = type(attention.program.graphs)()
        out = attention(*given)
        assert isinstance(out, Tensor)
        found.append([out, *torch.autograd.grad(out.square().sum(), [y for y in given if y.requires_grad])])
        sizes = [dict(y.sizes) for _, g in attention.program.graphs.items() for y in g.nodes if isinstance(y, Kernel)]
        lanes.append(max(s.get("Lanes", 0) for s in sizes))
    assert lanes[0] < lanes[1] == 12, "three lanes of each head and batch"
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("tile", [1, 4])
def test_rows_are_sorted_by_block_as_torch_sorts_them(tile: int) -> None:
    g = torch.Generator().manual_seed(tile)
    given = torch.randint(-2, 9, (30, 5), generator=g)  # some stand twice, some are no block
    index = torch.randint(-1, 30, (3, 11), generator=g)
    room = 55 if tile == 1 else 55 + 3 * 8
    mine = backends.named("cpu").by_block(given, index, 8, tile, room, cache.folder() / "cpu")
    torch.testing.assert_close(mine, lists.by_block(given, index, 8, tile, room), rtol=0, atol=0)
    rows, start, count = mine
    for lane, b in ((lane, b) for lane in range(3) for b in range(8)):
        own = rows[lane, start[lane, b] : start[lane, b] + count[lane, b]]
        assert own.tolist() == [r for r in range(11) if index[lane, r] >= 0 and b in given[index[lane, r]].tolist()]


def test_threads_repeats_and_batches_give_the_same_bits() -> None:
    attention = by_lists(GIVEN, "cpu")
    x = {n: y.float() if y.is_floating_point() else y for n, y in drawn(4).items()}

    def run(batch: slice) -> list[Tensor]:
        given = [x.get(t.name, x["sel"])[batch].clone() for t in attention.cascade.inputs]
        leaves = [y.requires_grad_() for y in given if y.is_floating_point()]
        out = attention(*given)
        assert isinstance(out, Tensor)
        return [out, *torch.autograd.grad(out.square().sum(), leaves)]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = run(slice(None))
        for n in range(20):
            torch.set_num_threads(1 + n % 2)
            assert all(map(torch.equal, first, run(slice(None))))
            assert all(map(torch.equal, (y[n % 2 :][:1] for y in first), run(slice(n % 2, n % 2 + 1))))
    finally:
        torch.set_num_threads(threads)


def test_a_call_takes_lists_where_they_are_less_work() -> None:
    moba = einfuse.compile("moba", best=2, block=16)
    assert moba.selection is not None
    reasons = {
        300: "a list names 32 of 300 points of j, and 0.67 of them or less is worth it",
        40: "40 points of i are fewer than 64",
    }
    for keys, listed in ((300, True), (40, False)):
        q, k, v = torch.randn(1, 2, keys, 8), torch.randn(1, 1, keys, 8), torch.randn(1, 1, keys, 8)
        reader, _ = moba.selection.reader({"q": q, "k": k, "v": v})
        assert (reader is moba.selection.listed) == listed
        assert moba.selection.said({"q": q, "k": k, "v": v}) == [
            "sel: what is ranked is computed by kernels",
            f"{'lists drive the loops' if listed else 'tables of truth values'}: {reasons[keys]}",
        ]
        found, truth = moba(q, k, v), moba.reference(q, k, v)
        torch.testing.assert_close(found, truth.float(), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]  # one output


def test_the_number_that_divides_a_position_may_be_told_by_a_call() -> None:
    attention = einfuse.compile("chosen_blocks", best=3, backend="cpu")
    assert attention.selection is not None
    q, k, v = torch.randn(1, 2, N, 8), torch.randn(1, 1, N, 8), torch.randn(1, 1, N, 8)
    x = {"q": q, "k": k, "v": v, "given": torch.randn(1, 1, N, SPAN)}
    for block, listed in ((WIDTH, True), (3 * WIDTH, False)):
        reader, _ = attention.selection.reader({**x, "block": block, "near": 1})
        assert (reader is attention.selection.listed) == listed
        found, truth = attention(**x, block=block, near=1), attention.reference(**x, block=block, near=1, dtype=torch.float64)
        torch.testing.assert_close(found, truth.float(), rtol=1e-4, atol=1e-5)  # type: ignore[union-attr]  # one output


def test_no_table_is_made_where_lists_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it for the look at reads outside of a tensor: a block of chosen_blocks may be none of ``given``, whatever the list holds."""

    def made(entries: Tensor, span: int) -> Tensor:
        raise AssertionError("a table of all blocks for every row")

    monkeypatch.setattr(through, "members", made)
    attention = einfuse.compile("chosen_blocks", best=3, backend="torch")
    q, k, v = torch.randn(1, 2, N, 8), torch.randn(1, 1, N, 8), torch.randn(1, 1, N, 8)
    attention(q, k, v, given=torch.randn(1, 1, N, SPAN), block=WIDTH, near=1)


def test_heads_that_choose_together_are_computed_each_by_itself() -> None:
    """But where something sums over them, as a loss of ``sparse_tokens``, and where each has lists of its own."""
    over = {}
    for name in ("nsa_selected", "hierarchical_tokens", "sparse_tokens", "mixture_of_heads"):
        selection = einfuse.compile(name).selection
        assert selection is not None
        over[name] = selection.rest.cascade.over
    together = {"nsa_selected": ("b", "h", "g"), "hierarchical_tokens": ("b", "h")}
    assert over == together | {"sparse_tokens": ("b",), "mixture_of_heads": ("b",)}


def test_what_is_explained_is_what_runs() -> None:
    moba = einfuse.compile("moba", best=2, block=16, backend="cpu")
    q, k, v = torch.randn(1, 2, 300, 8), torch.randn(1, 1, 300, 8), torch.randn(1, 1, 300, 8)
    (graph,) = graphs(moba, {"q": q, "k": k, "v": v}, {})
    assert [x.label for x in graph.nodes][-4:] == ["states of rows", "moba_listed", "rows of states", "moba_finalise"]


def test_a_spec_whose_table_is_read_otherwise_makes_the_table() -> None:
    """The gradient of a table of all pairs is given out pair by pair, which no list drives."""
    spec = GIVEN.replace("; in sel", "; in bias[b, h, i, j]; in sel").replace("/ sqrt(D)", "/ sqrt(D) + bias")
    x = drawn(5)
    compared(by_lists(spec, "cpu"), x | {"bias": torch.randn(2, 2, N, N, dtype=torch.float64)})


def test_lists_are_part_of_the_text() -> None:
    text = by_lists(GIVEN).text
    assert "bool listed S" in text
    assert show(parse(text)) == text


def test_a_list_that_is_no_tensor_of_ints_is_refused() -> None:
    attention = by_lists(GIVEN)
    x = {n: y.float() for n, y in drawn(6).items()}
    with pytest.raises(TypeError, match=r"must be an int tensor, found torch\.float32"):
        attention(*[x.get(t.name, x["sel"]) for t in attention.cascade.inputs])


def test_a_list_of_another_rank_does_not_drive() -> None:
    attention = by_lists(GIVEN)
    cascade = parse(attention.text)
    (table,) = [t for t in cascade.inputs if t.listed is not None]
    assert transform.find(cascade, table.name, {}) is not None
    assert transform.find(cascade, "q", {}) is None


@pytest.mark.slow
def test_graphs_and_transforms_of_a_choice() -> None:
    """A captured graph, an exported program, and vmap: what looks at values or sizes to be fast gives way."""
    moba = einfuse.compile("moba", best=2, block=16, backend="torch")

    def drawn_for(n: int) -> tuple[Tensor, Tensor, Tensor]:
        return torch.randn(1, 2, n, 8), torch.randn(1, 1, n, 8), torch.randn(1, 1, n, 8)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = moba(q, k, v)
        assert isinstance(out, Tensor)
        return out

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for n in (300, 40):
        x = drawn_for(n)
        torch.testing.assert_close(compiled(*x), call(*x), rtol=1e-4, atol=1e-5)
    x = drawn_for(300)
    several = torch.func.vmap(call)(*(torch.stack([y, y]) for y in x))
    torch.testing.assert_close(several[1], call(*x), rtol=1e-4, atol=1e-5)
    module = type("Module", (torch.nn.Module,), {"forward": lambda self, *given: call(*given)})()
    exported = torch.export.export(module, x)
    torch.testing.assert_close(exported.module()(*x), call(*x), rtol=1e-4, atol=1e-5)


def test_a_cascade_in_turns_is_a_text_and_so_is_its_plan() -> None:
    attention = by_lists(GIVEN, "cpu")
    x = {n: y.float() if y.is_floating_point() else y for n, y in drawn(6).items()}
    attention(*(x.get(t.name, x["sel"]) for t in attention.cascade.inputs))
    nodes = (y for _, g in attention.program.graphs.items() for y in g.nodes)
    kernel = next(y for y in nodes if isinstance(y, Kernel) and y.label == "given_listed")
    printed = kernel.printed()
    assert isinstance(printed, Printed)
    assert isinstance(printed.plan, KernelPlan)
    assert show(parse(show(printed.cascade))) == show(printed.cascade)
    assert [b.turns for b in printed.plan.ambient] == [False, True]
    assert plan_text.read(plan_text.show(printed.plan)) == printed.plan
