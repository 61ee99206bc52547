"""torch's own attention functions replaced: every argument, against torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrowed import three
from torch import nn
from torch.nn import functional

from einfuse.integrations import replace_sdpa
from einfuse.integrations import scaled_dot_product_attention as ours

STOCK = functional.scaled_dot_product_attention


def close(args: tuple[torch.Tensor, ...], mask: torch.Tensor | None = None, **options: Any) -> None:
    """Values and gradients of q, k, v (and of a float mask) agree."""
    leaves = [x.detach().requires_grad_() for x in args]
    if mask is not None and mask.is_floating_point():
        mask = mask.detach().requires_grad_()
        leaves.append(mask)
    expected = STOCK(*three(leaves[:3]), attn_mask=mask, **options)
    found = ours(*three(leaves[:3]), attn_mask=mask, backend="torch", **options)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    direction = torch.randn_like(expected)
    for f, e in zip(
        torch.autograd.grad(found, leaves, direction), torch.autograd.grad(expected, leaves, direction), strict=True
    ):
        torch.testing.assert_close(f, e, rtol=1e-4, atol=1e-5)


def qkv(*lead: int, queries: int = 5, keys: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(*lead, queries, 8), torch.randn(*lead, keys, 8), torch.randn(*lead, keys, 6)


@pytest.mark.parametrize("lead", [(), (3,), (2, 4), (2, 3, 2)], ids=str)
def test_any_number_of_leading_axes(lead: tuple[int, ...]) -> None:
    close(qkv(*lead))


@pytest.mark.parametrize("queries", [7, 5, 9])
def test_causal_counts_from_the_first_query(queries: int) -> None:
    close(qkv(2, 4, queries=queries), is_causal=True)


@pytest.mark.parametrize("shape", [(5, 7), (1, 7), (2, 1, 5, 7), (4, 5, 7), (2, 4, 5, 7), (2, 1, 1, 7)], ids=str)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_of_every_broadcast_shape(shape: tuple[int, ...], kind: str) -> None:
    mask = torch.rand(shape) > 0.3 if kind == "bool" else torch.randn(shape)
    if kind == "bool":
        mask[..., 0] = True  # a row without any key is torch's to define, see below
    close(qkv(2, 4), mask)


def test_minus_infinity_hides_a_key() -> None:
    mask = torch.randn(2, 1, 5, 7)
    mask[0, 0, 2, :6] = -torch.inf
    mask[1, :, :, 3] = -torch.inf
    close(qkv(2, 4), mask)


def test_a_row_without_keys_is_zero_and_has_no_gradient() -> None:
    q, k, v = (x.requires_grad_() for x in qkv(1, 2))
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[3] = False
    out = ours(q, k, v, attn_mask=mask, backend="torch")
    assert torch.equal(out[..., 3, :], torch.zeros(1, 2, 6))
    out.sum().backward()
    assert q.grad is not None
    assert torch.equal(q.grad[..., 3, :], torch.zeros(1, 2, 8))
    assert q.grad[..., 2, :].abs().sum() > 0


def test_scale_and_grouped_heads() -> None:
    q, k, v = qkv(2, 4)
    close((q, k[:, :2], v[:, :2]), enable_gqa=True, scale=0.7)
    close((q, k[:, :1], v[:, :1]), enable_gqa=True)


def test_double_precision() -> None:
    q, k, v = (x.double() for x in qkv(2, 4))
    torch.testing.assert_close(ours(q, k, v, backend="torch"), STOCK(q, k, v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dropout_p": 0.1}, "dropout_p must be 0.*found 0.1"),
        ({"is_causal": True, "attn_mask": torch.ones(5, 7)}, "cannot both be given"),
        ({"attn_mask": torch.ones(4, 7)}, r"must broadcast to \(2, 4, 5, 7\), found \(4, 7\)"),
        ({"attn_mask": torch.ones(5, 7, dtype=torch.int64)}, "booleans or floats.*found torch.int64"),
        ({"key": torch.randn(2, 3, 7, 8)}, "leading axes.*do not fit"),
        ({"key": torch.randn(2, 3, 7, 8), "enable_gqa": True}, "multiple of the heads"),
        ({"key": torch.randn(8)}, "two axes or more, found 4, 1 and 4"),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, dict) else "",
)
def test_what_cannot_be_done_is_said(change: dict[str, Any], message: str) -> None:
    q, k, v = qkv(2, 4)
    with pytest.raises((TypeError, ValueError), match=message):
        ours(**dict[str, Any](query=q, key=k, value=v) | change)


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_and_encoder_layers(training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, memory = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    hidden = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])  # torch's convention here: true is padding
    attention = nn.MultiheadAttention(16, 4, batch_first=True).train(training)
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).train(training)

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.set_grad_enabled(training):
            first = attention(x, memory, memory, key_padding_mask=hidden, need_weights=False)[0]
            return first, layer(x, src_key_padding_mask=hidden[:, :5])

    expected = run()
    calls: list[object] = []
    monkeypatch.setattr("einfuse.integrations.sdpa.general", _counted(calls))
    with replace_sdpa("torch"):
        found = run()
    assert len(calls) == 2
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-5, atol=1e-5)


def _counted(calls: list[object]) -> Callable[..., torch.Tensor]:
    from einfuse.integrations.compiled import general

    def counting(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(args)
        return general(*args, **kwargs)  # type: ignore[arg-type]

    return counting


@pytest.mark.slow
def test_the_compiled_kernel_too() -> None:
    q, k, v = qkv(2, 4)
    mask = torch.randn(5, 7)
    with replace_sdpa("cpu"):
        found = functional.scaled_dot_product_attention(q, k, v, mask)
    torch.testing.assert_close(found, STOCK(q, k, v, mask), rtol=1e-5, atol=1e-5)
