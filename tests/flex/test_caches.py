"""What is kept between calls is bounded, and holds no tensor of the user's."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from noting import noting

from einfuse.flex import assemble, captures, create_block_mask, flex_attention, tracer
from einfuse.runtime import ops

OPTIONS = {"backend": "torch"}


def test_formulas_that_were_not_used_for_long_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """And come back right, with another number in the formula or another function."""
    monkeypatch.setattr(assemble._COMPILED, "most", 3)
    monkeypatch.setattr(tracer._PURE, "most", 2)
    monkeypatch.setattr(ops._PROGRAMS._last, "most", 3)
    x = torch.randn(1, 1, 6, 4)
    factors = [2, 3, 4, 5, 6, 2]
    for n in factors:
        score_mod = eval(f"lambda s, b, h, i, j: s * {n}")
        out = flex_attention(x, x, x, score_mod, kernel_options=OPTIONS)
        torch.testing.assert_close(out, torch.softmax(x @ x.mT / 2 * n, -1) @ x)
    assert len(assemble._COMPILED) == 3
    assert len(tracer._PURE) == 2
    assert len(ops._PROGRAMS._last) <= 3


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow)])
def test_captured_tensors_are_let_go(backend: str) -> None:
    """Read in masks (where live tiles are kept), as biases with minus infinities, in functions and in masks made of lists."""
    x = torch.randn(1, 1, 40, 8)

    def run() -> list[weakref.ref[Any]]:
        documents, bias, wide = torch.arange(40) // 20, torch.zeros(40, 40).tril().log(), torch.randn(40).requires_grad_()
        same = lambda b, h, i, j: documents[i] == documents[j]  # noqa: E731
        mask = create_block_mask(same, None, None, 40, 40, device="cpu", BLOCK_SIZE=16)
        biased = lambda s, b, h, i, j: s + bias[i, j] * 2 + wide[j]  # noqa: E731
        for _ in range(2):
            flex_attention(x, x, x, biased, mask, kernel_options={"backend": backend}).sum().backward()
        with torch.no_grad():
            flex_attention(x, x, x, None, mask, kernel_options={"backend": backend})
        return [weakref.ref(t) for t in (documents, bias, wide, same, biased, mask)]

    seen = run()
    gc.collect()
    assert [r() for r in seen] == [None] * len(seen)
    assert not any(t.shape == (40, 40) for t in captures._KNOWN)


def test_a_table_is_looked_at_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through slices of it, which are new tensors in every call, and when numpy writes it."""
    looks: list[int] = []
    look = captures._look
    monkeypatch.setattr(captures, "_look", noting(looks, lambda x: 1, look))
    bias = torch.zeros(2, 6, 6, requires_grad=True)
    x = torch.randn(1, 1, 6, 4)
    wanted = torch.softmax(x @ x.mT / 2, -1) @ x
    biased = lambda s, b, h, i, j: s + bias[1][i, j] + bias[0, :, 3][j]  # noqa: E731
    for _ in range(3):
        torch.testing.assert_close(flex_attention(x, x, x, biased, kernel_options=OPTIONS), wanted)
    assert len(looks) == 2
    bias.detach().numpy()[1, :, :5] = -torch.inf
    out = flex_attention(x, x, x, biased, kernel_options=OPTIONS)
    torch.testing.assert_close(out, x[:, :, 5:].expand(1, 1, 6, 4))
