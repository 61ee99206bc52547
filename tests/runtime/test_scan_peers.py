"""The reference formulas of flash-linear-attention (fla-core 0.6 and einops), in fp32 and point by point, give what our specs give.

Only those files are read: the package around them asks for a GPU. Our own formulas, written from the papers, are in recurrences.py.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu, logsigmoid, normalize

import einfuse

N, SHAPE = 37, (2, 2, 37, 8)


def naive(name: str) -> Any:
    """A module of reference formulas."""
    pytest.importorskip("einops")
    try:
        path = importlib.metadata.distribution("fla-core").locate_file(f"fla/ops/{name}.py")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flash-linear-attention is not installed")
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), str(path))
    assert spec is not None, "a path that ends in .py has a spec"
    assert spec.loader is not None, "and a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=generator) for s in shapes]


def agree(found: tuple[Tensor | None, ...], wanted: tuple[Tensor, ...]) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a is not None
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)


def turned(*tensors: Tensor) -> list[Tensor]:
    """[B, H, N, ...] as [B, N, H, ...]."""
    return [x.transpose(1, 2) for x in tensors]


def ours(name: str, **inputs: Tensor) -> tuple[Tensor, ...]:
    found = einfuse.compile(name, backend="torch")(**inputs)
    assert isinstance(found, tuple)
    return found


def test_linear() -> None:
    q, k, v = drawn(SHAPE, SHAPE, SHAPE)
    fq, fk, values = turned(elu(q) + 1, elu(k) + 1, v)
    found, _ = naive("linear_attn/naive").naive_recurrent_linear_attn(fq, fk, values, scale=1.0, normalize=True)
    agree((found.transpose(1, 2),), ours("linear", q=q, k=k, v=v)[:1])


def test_retention() -> None:
    q, k, v = drawn(SHAPE, SHAPE, SHAPE)
    slope = -torch.log(1 - 2.0 ** (-5 - torch.arange(SHAPE[1])))
    agree((naive("retention/naive").naive_retention(q, k, v),), ours("retention", q=q, k=k, v=v, slope=slope)[:1])


def test_gla() -> None:
    q, k, v, g, first = drawn(SHAPE, SHAPE, SHAPE, SHAPE, (2, 2, 8, 8))
    peer = naive("gla/naive").naive_recurrent_gla
    o, last = peer(*turned(q, k, v, logsigmoid(g) / 16), initial_state=first, output_final_state=True)
    agree((o.transpose(1, 2), last), ours("gla", q=q, k=k, v=v, g=g, initial=first))


def test_delta() -> None:
    q, k, v, beta, first = drawn(SHAPE, SHAPE, SHAPE, SHAPE[:3], (2, 2, 8, 8))
    found = naive("delta_rule/naive").delta_rule_recurrence(q, normalize(k, dim=-1), v, beta.sigmoid(), first.clone())
    agree(found, ours("delta", q=q, k=k, v=v, beta=beta, initial=first))


def test_gated_delta() -> None:
    q, k, v, g, beta, first = drawn(SHAPE, SHAPE, SHAPE, SHAPE[:3], SHAPE[:3], (2, 2, 8, 8))
    peer = naive("gated_delta_rule/naive").naive_recurrent_gated_delta_rule
    inputs = turned(q, normalize(k, dim=-1), v, beta.sigmoid(), logsigmoid(g))
    o, last = peer(*inputs, initial_state=first, output_final_state=True)
    agree((o.transpose(1, 2), last), ours("gated_delta", q=q, k=k, v=v, g=g, beta=beta, initial=first))


def test_rwkv6() -> None:
    r, k, v, w, u, first = drawn(SHAPE, SHAPE, SHAPE, SHAPE, (2, 8), (2, 2, 8, 8))
    peer = naive("rwkv6/recurrent_naive").naive_recurrent_rwkv6
    found = peer(r, k, v, -w.exp(), u, scale=1.0, initial_state=first, output_final_state=True)
    agree(found, ours("rwkv6", r=r, k=k, v=v, w=w, u=u, initial=first))
