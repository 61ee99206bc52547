"""Operands of products in bf16: inputs are packed as they lie in memory, without a detour by floats."""

from __future__ import annotations

import pytest
import torch
from narrowed import only

import einfuse

HEADER = "struct Scratch"


def emitted(name: str, **static: int) -> str:
    """The kernel of a spec in bf16, without the headers."""
    attention = einfuse.compile(name)
    (kernel,) = attention.candidates("cpu", torch.bfloat16, False, static)
    return kernel.source.split(HEADER)[1]


def test_inputs_are_not_widened() -> None:
    text = emitted("causal")
    assert "pair_rows(" not in text
    assert not [x for x in ("q_tile", "k_tile_block", "v_tile_block") if f"take<T>({x}" in text or f"T* const {x} =" in text]


def test_what_is_computed_of_an_input_is_rounded_where_it_is_computed() -> None:
    """Keys that are turned are written as pairs by the loop that turns them."""
    text = emitted("rope")
    assert "pair_rows(" not in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [8, 24, 40])
@pytest.mark.parametrize("turned", [False, True])
def test_any_width_and_stride(width: int, turned: bool) -> None:
    """What lies behind the last feature, or between features, is NaN."""
    torch.manual_seed(width)
    room = torch.full((3, 1, 2, 37, 3 * width), torch.nan, dtype=torch.bfloat16)
    wide = room[..., ::2] if turned else room
    x = [wide[n, ..., :width].copy_(torch.randn(1, 2, 37, width)).requires_grad_() for n in range(3)]
    attention = einfuse.compile("causal", backend="cpu")
    exact = [v.detach().double().requires_grad_() for v in x]
    o, truth = only(attention(*x)), only(attention.reference(*exact))
    upstream = torch.randn(o.shape, dtype=torch.bfloat16)
    found = (o, *torch.autograd.grad(o, x, upstream))
    for got, want in zip(found, (truth, *torch.autograd.grad(truth, exact, upstream.double())), strict=True):
        assert ((got.double() - want).abs().max() / want.abs().max()).item() < 1.5e-2


def test_rows_are_copied_whole() -> None:
    text = emitted("causal")
    assert text.count("copy_halves<") >= 3
    assert "store_halves(q_rows" not in text


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns", "width"), [(1, 7, 64), (3, 40, 24), (8, 129, 64), (19, 65, 128)])
def test_sums_of_few_and_of_many_rows(rows: int, columns: int, width: int) -> None:
    """Few rows are multiplied in registers, pairs of columns by one instruction where the processor has it; the last column may be alone."""
    torch.manual_seed(rows)
    q, k, v = (torch.randn(2, 3, n, width).bfloat16() for n in (rows, columns, columns))
    o = einfuse.compile("full", backend="cpu")(q, k, v)
    exact = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert isinstance(o, torch.Tensor)
    assert ((o.double() - exact).abs().max() / exact.abs().max()).item() < 1.5e-2
