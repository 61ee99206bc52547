"""Gradients of tables read at both positions: exact in windows of any size, and never in the memory of all pairs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from narrowed import flat, only

import einfuse
from einfuse.dsl import compile_text
from einfuse.ir import Einsum, index, interpret
from einfuse.ir.offsets import of_difference
from einfuse.ir.passes import canonicalise, differentiate, window
from einfuse.runtime import pairs
from einfuse.runtime.scan import ScanProgram
from einfuse.runtime.verify import Shape

SHAPE = Shape(batch=2, heads=2, queries=37, keys=45, widths=(3, 4), group=2)
TABLES = ("relative_position", "t5_bias", "shaw", "swin_window", "head_bias", "neighborhood", "graph_transformer", "linformer")


@pytest.mark.parametrize("rows", [5, 1000])
@pytest.mark.parametrize("name", TABLES)
def test_windows_give_the_gradient(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MOST_ELEMENTS", 1)
    monkeypatch.setattr(pairs, "FEWEST_ROWS", rows)
    shape = None if name in ("swin_window", "neighborhood") else SHAPE
    attention = einfuse.compile(name)
    attention.program.graphs.clear()  # of other windows
    found = einfuse.verify(attention, backends=["torch"], dtypes=["float32"], shape=shape, brief=True)
    assert found.ok, [r for r in found.rows if not r.ok]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_windows_in_compiled_kernels(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "MOST_ELEMENTS", 1)
    monkeypatch.setattr(pairs, "FEWEST_ROWS", 20)
    found = einfuse.verify(einfuse.compile("t5_bias"), backends=[backend], dtypes=["float32"], shape=SHAPE, brief=True)  # type: ignore[list-item]
    assert found.ok, [r for r in found.rows if not r.ok]


@pytest.mark.parametrize("factor", ["", "q[b, h, i, 0] * "], ids=["alone", "times a query"])
def test_a_table_that_is_itself_the_weight_of_the_points_it_is_read_at(factor: str) -> None:
    """Its gradient is a product of two others, which is no number at points that a mask takes out; one index reads a parameter."""
    text = f"""attention f(width: int = 6) over b, h {{
  rank i: query; rank j: key; rank e: feature
  in q[b, h, i, e]
  in v[b, h, j, e]
  in beta[h, 3, 3]
  dy = j // width - i // width
  dx = j % width - i % width
  w = {factor}beta[h, dy + 1, dx + 1] where abs(dy) <= 1 and abs(dx) <= 1
  o[i, e] = sum[j](w * v)
  out o
}}"""
    shape = Shape(batch=2, heads=2, queries=37, keys=45, widths=(4,), group=1)
    found = einfuse.verify(einfuse.compile(text), backends=["torch"], dtypes=["float32"], shape=shape, brief=True)
    assert found.ok, [r for r in found.rows if not r.ok]


def test_a_bias_read_under_two_masks() -> None:
    """Two shares of one gradient, both for all pairs."""
    found = einfuse.verify(
        einfuse.compile("""attention f over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in bias[b, h, i, j]
  s = sum[d](q * k) + bias
  l = sum[j](abs(tanh(s)))
  o[i, e] = sum[j](tanh(s) / (1 + l) * v where j % 2 == 0)
  out o
}"""),
        backends=["torch"],
        dtypes=["float32"],
        shape=SHAPE,
    )
    assert found.ok, [r for r in found.rows if not r.ok]


@pytest.mark.slow
def test_a_table_gradient_is_the_same_in_every_run_and_for_every_number_of_threads() -> None:
    attn = einfuse.compile("relative_position")
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 130, 8) for _ in range(3))
    found = []
    for threads in (1, 2, 2):
        table = torch.zeros(2, 259, requires_grad=True)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            only(attn(q, k, v, table=table)).sum().backward()
        finally:
            torch.set_num_threads(before)
        found.append(table.grad)
    assert found[0] is not None
    assert all(torch.equal(found[0], g) for g in found if g is not None)


def test_the_pass_means_the_same_row_by_row() -> None:
    c = canonicalise.run(
        flat(
            compile_text("""attention f(width: int = 3) over b {
  rank i: query; rank j: key; rank d: feature
  in q[b, i, d]
  in k[b, j, d]
  in slope[b, i]
  in doc[b, Nq]: int
  s = sum[d](q * k) * slope + (j - i) where i - j < width and doc[b, i] == doc[b, min(j, Nq - 1)]
  o[i, d] = sum[j](s * k)
  out o
}""")
        )
    )
    w = window.run(c, "i")
    assert dict(w.cut) == {"q": 2 - 1, "slope": 1}, "doc is read at two coordinates and passed whole"
    torch.manual_seed(0)
    x = {"q": torch.randn(2, 7, 3), "k": torch.randn(2, 5, 3), "slope": torch.randn(2, 7), "doc": torch.randint(0, 2, (2, 7))}
    sizes = {"B": 2, "Nq": 7, "Nk": 5, "D": 3}
    whole = interpret(c, {**x, "width": 3}, sizes)["o"]
    for lo, hi in ((0, 7), (2, 5), (6, 7)):
        rows = {n: t.narrow(dict(w.cut)[n], lo, hi - lo) if n in dict(w.cut) else t for n, t in x.items()}
        part = interpret(w.cascade, {**rows, "width": 3, w.at: lo}, {**sizes, w.rows: hi - lo})["o"]
        torch.testing.assert_close(part, whole[:, lo:hi])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("j - i + Nq - 1", True),
        ("min(max(i - j, -8), 8) + (16 if j > i else 0)", True),
        ("abs(i - j) * (j - i) // 3", True),
        ("int(floor(log(max(abs(j - i), 1) / 8.0)))", True),
        ("j // 2 - i // 2", False),
        ("j + i", False),
        ("i * j - j * i + i", False),
        ("int(j > 2 * i)", False),
    ],
)
def test_functions_of_the_difference(text: str, expected: bool) -> None:
    c = compile_text(f"""attention f over b {{
  rank i: query; rank j: key
  in x[b, W]
  o[i] = sum[j](x[b, {text}])
  out o
}}""")
    x = c.body[0]
    assert isinstance(x, Einsum)
    assert of_difference(x.map.args[1], "i", "j") is expected


@pytest.mark.slow
def test_no_spec_of_the_library_has_room_for_all_pairs() -> None:
    """Beyond the inputs and outputs that its user declared to have an entry for every pair, and their gradients."""
    checked = 0
    for spec in einfuse.list_specs():
        attention = einfuse.compile(spec.name)
        differentiated = attention if attention.selection is None else attention.selection.rest  # a choice has no gradient
        for stage in differentiated.kernels:
            if isinstance(stage.program, ScanProgram):
                continue
            c = stage.cascade
            wanted = tuple(t.name for t in c.inputs if t.dtype == "float" and not t.param)
            sequence = {r.name for r in c.ranks if r.kind not in ("feature", "state")} - set(c.over)
            backward = stage.program.backward_of(wanted)
            ranks = {x.target: x.ranks for x in stage.program.canonical().body if isinstance(x, Einsum)}
            assert all(len(sequence & set(ranks[n])) < 2 for n in backward.saved if n not in attention.cascade.outs), spec.name
            for part_cascade, parts in backward.cascades:
                ranks = {x.target: x.ranks for x in part_cascade.body if isinstance(x, Einsum)}
                dense = {n for n in part_cascade.outs if len(sequence & set(ranks[n])) > 1}
                declared = {p.statement for p in parts if set(map(index, sequence & set(p.ranks))) <= set(p.index)}
                cut = pairs.Pairs.of(part_cascade, parts, declared)
                assert dense <= declared | (set(cut.parts) if cut else set()), (spec.name, part_cascade.name)
                checked += len(dense)
    assert checked > 20, "there are tables in the library"


LONG = """attention f over b, h {
  rank i: query; rank j: key; rank d: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in table[h, Nq + Nk - 1]
  o[i, d] = sum[j]((sum[d](q * k) + table[h, j - i + Nq - 1]) * k where j <= i)
  out o
}"""


@pytest.mark.slow
def test_peak_memory_of_a_backward_at_8192_positions() -> None:
    """All pairs in fp32 are 256 MiB; forward and backward together stay far below."""
    program = f"""
import json, resource, torch, einfuse
attn = einfuse.compile({LONG!r})
def run(n):
    q, k = (torch.randn(1, 1, n, 4, requires_grad=True) for _ in range(2))
    table = torch.zeros(1, 2 * n - 1, requires_grad=True)
    attn(q, k, table=table).sum().backward()
    return table.grad
run(64)  # what is loaded and compiled once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
grad = run(8192)
print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, bool(grad.isfinite().all())]))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    before, after, finite = json.loads(out)
    assert finite
    assert (after - before) / 1024 < 75, f"{(after - before) / 1024:.0f} MiB more"


def test_differentiate_still_gives_a_dense_gradient_where_the_input_is_dense() -> None:
    c = canonicalise.run(flat(einfuse.compile("bias").cascade))
    (cascade, parts), *_ = [x for x in differentiate.run(c, ["bias"]).cascades if x[1]]
    whole = {p.statement for p in parts}
    assert pairs.Pairs.of(cascade, parts, whole) is None


def test_a_loop_that_keeps_nothing_gives_out_pairs() -> None:
    """The gradient of a filter for every row has an entry for every pair, and no sum."""
    attention = einfuse.compile("dynamic_convolution")
    found = einfuse.verify(attention, backends=["torch"], dtypes=["float32"], shape=Shape(2, 2, 9, 11, (4, 5), 1), brief=True)
    assert found.ok, [r for r in found.rows if not r.ok]


def test_features_of_rows_are_multiplied_by_a_number_for_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table as long as the rows: no gradient has features for pairs, in windows too, and rows without pairs are not seen."""
    attention = einfuse.compile(
        """attention f over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in rel[h, Nq + Nk - 1, d]
  in far[Nq + Nk, e]
  s = sum[d](q * (k + rel[h, j - i + Nq - 1, d])) where i < 30
  o[i, e] = sum[j](softmax[j](s) * (v + far[(i * j) % Nk, e]))
  out o
}""",
        backend="torch",
    )
    for c, parts in attention.program.backward_of(("q", "rel", "far")).cascades:
        ranks = {p.statement: {*p.ranks} for p in parts}
        assert all({"i", "j"} - ranks[n] or not {"d", "e"} & ranks[n] for n in ranks), c.name
    monkeypatch.setattr(pairs, "MOST_ELEMENTS", 1)
    monkeypatch.setattr(pairs, "FEWEST_ROWS", 15)
    found = einfuse.verify(attention, backends=["torch"], dtypes=["float32"], shape=SHAPE, brief=True)
    assert found.ok, [r for r in found.rows if not r.ok]
    torch.manual_seed(0)
    q, k, v, rel, far = (torch.randn(s) for s in ((1, 2, 37, 3), (1, 2, 45, 3), (1, 2, 45, 4), (2, 81, 3), (82, 4)))
    gradients: list[torch.Tensor] = []
    for hidden in (0.0, float("nan")):
        q[:, :, 30:], leaf = hidden, rel.clone().requires_grad_()
        out = attention(q, k, v, rel=leaf, far=far)
        assert isinstance(out, torch.Tensor)
        gradients += torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(*gradients)
