"""Backward kernels by rows and by columns as one: what may be merged, the gradients, and that threads do not change them."""

from dataclasses import replace

import pytest
import torch

import einfuse
from einfuse.codegen import cpu
from einfuse.codegen.cpu.merged import sequential
from einfuse.codegen.plan import Dot, KernelPlan, Map, Size, Store, operations


def pair(name: str, dtype: torch.dtype = torch.float32) -> tuple[KernelPlan, KernelPlan]:
    """The last two backward kernels of a spec, the gradients by rows in accumulation precision."""
    rows, columns = einfuse.compile(name).plans("cpu", dtype, backward=True)[-2:]
    return replace(rows, tensors=tuple(replace(t, storage="f32") if t.out else t for t in rows.tensors)), columns


def products(plan: KernelPlan) -> list[int]:
    return [sum(isinstance(op, Dot) for op in p.body) for s in plan.folds for p in s.phases]


def test_five_products_of_seven() -> None:
    rows, columns = pair("causal")
    merged = cpu.merge(rows, columns)
    assert merged is not None
    assert sequential(merged)
    assert not sequential(rows)
    assert (set(products(rows)), set(products(columns)), set(products(merged))) == ({3}, {4}, {5})
    assert {t.name for t in merged.tensors if t.out} == {"d_q", "d_k", "d_v"}


@pytest.mark.parametrize("name", ["causal", "document", "sliding_window"])
def test_pairs_exist_where_a_row_does(name: str) -> None:
    """Columns fold rows: a plan has to tell the rows that exist from the padding of a block, and need not do so for the columns of a tile."""
    merged = cpu.merge(*pair(name))
    assert merged is not None
    (fold,) = merged.folds
    size = next(op.out for op in operations(merged) if isinstance(op, Size) and op.name == fold.size)
    made = {op.out: op for op in operations(merged) if not isinstance(op, Store)}
    for phase in fold.phases:
        selects = [op for op in phase.body if isinstance(op, Map) and op.fn == "select" and op.args[0].name.startswith("live")]
        assert len({op.args[0] for op in selects}) == (phase.label == "masked"), "what both kernels say of a pair is said once"
        for op in selects:
            last = made[made[op.args[0]].args[1]]  # type: ignore[union-attr]  # of a conjunction
            assert last.args[1] == size  # type: ignore[union-attr]


def test_what_is_not_merged() -> None:
    rows, columns = pair("causal")
    assert cpu.merge(columns, columns) is None  # not crossed
    assert cpu.merge(*pair("cosine")) is None  # the sums of its rows are not what they store
    assert cpu.merge(einfuse.compile("causal").plans("cpu", torch.float32)[0], columns) is None  # a maximum is no sum
    narrow = replace(rows, tensors=tuple(replace(t, storage="bf16") if t.out else t for t in rows.tensors))
    assert cpu.merge(narrow, columns) is None  # sums would be rounded at every tile
    assert cpu.merge(replace(rows, ambient=rows.ambient[:1]), columns) is None


def test_sums_that_are_no_products() -> None:
    rows, columns = pair("alibi")
    merged = cpu.merge(rows, columns)
    assert merged is not None
    assert {t.name for t in merged.tensors if t.out} == {"d_q", "d_k", "d_v", "d_slope"}


CASES = [  # the last does something with the sums of its rows
    ("document", torch.bfloat16, 1.5e-2),
    pytest.param("alibi", torch.float32, 4e-6, marks=pytest.mark.optimised),
    ("cosine", torch.float32, 4e-6),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype", "bound"), CASES)
def test_gradients(name: str, dtype: torch.dtype, bound: float) -> None:
    """Merged (as many heads as threads, or three times as many) and apart, against the oracle; equal for any number of threads."""
    torch.manual_seed(0)
    attn = einfuse.compile(name)
    extra = {"doc": (torch.arange(133) // 50)[None].int()} if name == "document" else {}
    x = [torch.randn(1, 3, 133, 24).to(dtype).requires_grad_() for _ in range(3)]
    x += [torch.rand(3).requires_grad_() for t in attn.cascade.inputs if t.name in ("slope", "tau")]
    upstream = torch.randn(1, 3, 133, 24).to(dtype)
    exact = [v.detach().double().requires_grad_() for v in x]
    truth = torch.autograd.grad(attn.reference(*exact, **extra, dtype=torch.float64), exact, upstream.double())
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 3, 2):  # with 2 threads the three heads do not fill them: two kernels
            torch.set_num_threads(n)
            found.append(torch.autograd.grad(attn(*x, **extra), x, upstream))
            assert sum(b is not None for b in attn.program.gradients.built.values()) >= 1
    finally:
        torch.set_num_threads(threads)
    for gradients in found:
        for got, want in zip(gradients, truth, strict=True):
            assert ((got.double() - want).abs().max() / want.abs().max()).item() < bound
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    kernels = [b.plan.name for b in attn.program.built.values()]
    assert any(k.endswith("_rows") for k in kernels)
    assert any(k.endswith("_tail") for k in kernels) == (name in ("cosine", "rope"))
