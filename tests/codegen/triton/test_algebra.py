"""What a row, a column or the end of a loop does instead of every pair: the rewrites, and that kernels compute the same with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.codegen.plan import Block, Coordinate, Fold, KernelPlan, Map, Param, Region, Store, Value
from einfuse.codegen.triton.algebra import lighten


def loops(spec: str, backward: bool = False) -> list[str]:
    """The loops of all kernels of a spec, bf16 and 64 features."""
    found = einfuse.compile(spec).candidates("triton", torch.bfloat16, backward, {}, "sm_90")
    texts = [re.split(r"\ndef \w+_described|\ndef launch", c.source)[0] for c in found]
    return [loop for text in texts for loop in re.split(r"\n    for ", text)[1:]]


def test_a_largest_score_is_scaled_once_a_row() -> None:
    full, masked = loops("causal")
    assert "s_max_block = s_max_block_2 * 0.125" in full
    assert "qk * 0.125\n" not in full + masked


def test_a_number_of_unknown_sign_stays_inside_a_maximum() -> None:
    text = """attention scaled(scale: float) over b, h {
      rank i: query; rank j: key; rank d, e: feature
      in q[b, h, i, d]; in k[b, h, j, d]; in v[b, h, j, e]
      s = sum[d](q * k) * scale
      o[i, e] = sum[j](softmax[j](s) * v)
      out o
    }"""
    found = einfuse.compile(text.replace("; in", "\n in")).candidates("triton", torch.bfloat16, False, {}, "sm_90")
    assert "tl.max(s, axis=1)" in found[0].source


def test_pairs_are_selected_and_compared_once() -> None:
    _, masked = loops("causal")
    assert masked.count("tl.where(j[None, :]") == 1
    assert "(tl.minimum(i, Nk - 1))[:, None]" in masked
    window = loops("sliding_window")[0]
    assert window.count("[:, None]) & (j[None, :] > ") == 1


def test_constant_factors_of_gradients_leave_the_loops() -> None:
    for loop in loops("causal", backward=True)[2:]:
        head = loop.split("\n\n")[0]
        assert "d_s * 0.125" not in head


@pytest.mark.parametrize("width", [-(1 << 31), -5, 0, 1, 3, 1 << 30, (1 << 31) - 1])
def test_a_window_of_any_width_keeps_its_pairs(width: int) -> None:
    """``i - j < w`` becomes ``j > i - w``, and no 32-bit number overflows: the operations are done here in 32 bits."""
    i, j = Value("i", ("i",), "int"), Value("j", ("j",), "int")
    w, live = Value("w", (), "int"), Value("live", ("i", "j"), "bool")
    gap = Value("gap", ("i", "j"), "int")
    body: Region = (Coordinate(i, "i"), Coordinate(j, "j"), Param(w, "w"), Map(gap, "-", (i, j)), Map(live, "<", (gap, w)))
    body += (Store("o", (i, j), live),)
    plan = KernelPlan("p", "", (), Block("i", "N", 16), (Block("j", 16, 16),), (), (("w", "int"),), ("N",), (body,))
    (after,) = lighten(plan).steps
    assert not isinstance(after, Fold)
    known: dict[str, torch.Tensor] = {"w": torch.tensor(width, dtype=torch.int32)}
    at = torch.arange(5, dtype=torch.int32)
    for op in after:
        match op:
            case Coordinate(out=out, rank=rank):
                known[out.name] = at[:, None] if rank == "i" else at[None]
            case Map(out=out, fn=fn, args=args):
                x, y = (known[a.name] for a in args)
                table: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]
                table = {"-": torch.sub, "max": torch.maximum, "<": torch.lt, ">": torch.gt}
                known[out.name] = table[fn](x, y)
            case Param() | Store():
                pass
            case other:
                known[other.out.name] = torch.tensor(other.value, dtype=torch.int32)  # type: ignore[union-attr]  # a constant
    expected = at.long()[:, None] - at.long()[None] < width
    assert torch.equal(known["live"], expected)
    assert not any(isinstance(op, Map) and op.fn == "<" for op in after)


SPEC = """attention late(gap: int = 3) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where j + gap <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["causal", "sliding_window", SPEC])
def test_hazard_18_kernels_of_many_blocks_are_right_in_rows_without_keys_too(spec: str) -> None:
    """150 rows are two tiles; the first rows of the last spec see nothing."""
    torch.manual_seed(0)
    attention = einfuse.compile(spec, backend="triton")
    more: dict[str, Any] = {"window": 40} if spec == "sliding_window" else {}
    leaves = [torch.randn(1, 1, 150, 16, dtype=torch.bfloat16).requires_grad_() for _ in range(3)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    found, truth = only(attention(*leaves, **more)), only(attention.reference(*wide, **more))
    torch.testing.assert_close(found.double(), truth, rtol=2e-2, atol=2e-2)
    assert torch.isfinite(found).all()
    along = torch.randn_like(found)
    for x, y in zip(torch.autograd.grad(found, leaves, along), torch.autograd.grad(truth, wide, along.double()), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=5e-2, atol=5e-2)


def test_numbers_that_scores_are_multiplied_by_meet_before_the_loop() -> None:
    """softcap divides by two numbers, and its gradient has three: one multiplication for a pair, none for a gradient."""
    full = loops("softcap")[0]
    assert re.search(r"= _short_tanh\((\w+)\)", full)
    assert len(re.findall(r" qk \* scale\w*\n", full)) == 1
    rows = next(x for x in loops("softcap", backward=True)[2:] if "# d_q_new" in x)
    head = rows.split("\n\n")[0]
    assert not re.search(r"= (cap|scale\w*|t_\d+) \* t_\d+\n\s+d_qk", head)
    assert re.search(r"d_qk\w* = t_\d+ \* d_s\n", head)


def test_numbers_keep_their_order_in_fp32() -> None:
    (text,) = (c.source for c in einfuse.compile("softcap").candidates("triton", torch.float32, False, {}, "sm_90"))
    assert "_short_tanh" not in text
    assert "qk * scale" not in text


def test_distances_are_differences_of_floats() -> None:
    """A conversion takes a unit of which there are few: one a row and a column, not one a pair."""
    full = loops("alibi")[0]
    assert "j_at_float[None, :] - i_at_float[:, None]" in full
    assert "tl.cast((j" not in full
