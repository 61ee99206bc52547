"""`einfuse.flex.BlockMask`: no memory, and the answers of torch's."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as torchs

from einfuse.flex import BlockMask, and_masks, create_block_mask, flex_attention

OPTIONS = {"backend": "torch"}
DOCUMENTS = torch.repeat_interleave(torch.arange(5), torch.tensor([40, 3, 70, 90, 50]))
FLAGS = torch.rand(300, 300, generator=torch.Generator().manual_seed(0))


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def heads(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx - kv_idx).abs() <= 10 * (h + 1) + b


MASKS: dict[str, Callable[..., Any]] = {
    "causal": causal,
    "heads": heads,
    "documents": lambda b, h, i, j: DOCUMENTS[i] == DOCUMENTS[j],
    "dilated": lambda b, h, i, j: ((i - j) % 64 == 0) & (i - j < 128),
    "none": lambda b, h, i, j: i > i + j,
    "data": lambda b, h, i, j: FLAGS[i, j] > 0.9999,
}
SHAPE = (2, 3, 253, 225)


def pair(mask_mod: Callable[..., Any], size: int | tuple[int, int] = (64, 32)) -> tuple[BlockMask, Any]:
    """Ours and torch's."""
    torch_mask = torchs.create_block_mask(mask_mod, *SHAPE, device="cpu", BLOCK_SIZE=size)
    return create_block_mask(mask_mod, *SHAPE, device="cpu", BLOCK_SIZE=size), torch_mask


@pytest.mark.parametrize("name", MASKS)
def test_blocks_are_those_of_torch(name: str) -> None:
    ours, theirs = pair(MASKS[name])
    assert ours.shape == theirs.shape
    assert ours.numel() == theirs.numel()
    assert torch.equal(ours.to_dense(), theirs.to_dense().int())
    assert ours.sparsity() == pytest.approx(theirs.sparsity())
    assert torch.equal(ours.kv_num_blocks, theirs.kv_num_blocks)
    assert torch.equal(ours.full_kv_num_blocks, theirs.full_kv_num_blocks)
    for mine, other, count in (
        (ours.kv_indices, theirs.kv_indices, theirs.kv_num_blocks),
        (ours.full_kv_indices, theirs.full_kv_indices, theirs.full_kv_num_blocks),
    ):
        listed = torch.arange(mine.shape[-1]) < count[..., None]
        assert torch.equal(mine[listed], other[listed])


def test_printing() -> None:
    ours, theirs = pair(causal)
    assert str(ours).startswith("BlockMask(shape=(2, 3, 253, 225), sparsity=")
    drawn = str(theirs).split("\n")[1:6]
    assert str(ours).split("\n")[1:6] == drawn
    assert repr(ours) == "BlockMask(shape=(2, 3, 253, 225), BLOCK_SIZE=(64, 32), mask_mod=causal)"
    assert "to_string(limit=N)" in ours.to_string(limit=2)


@pytest.mark.parametrize(
    "index", [1, (slice(None), 1), (0, slice(1, 3)), (slice(None), slice(None), slice(1, 4)), (0, torch.tensor([2, 0]))]
)
def test_slices_have_the_blocks_of_torch(index: Any) -> None:
    ours, theirs = pair(MASKS["heads"])
    assert torch.equal(ours[index].to_dense(), theirs[index].to_dense().int())


def test_a_slice_attends_where_the_whole_does(qkv: Any, dense: Any) -> None:
    """Of batch elements, heads and rows of blocks, and of a slice again; torch refuses to."""
    q, k, v = qkv(2, 3, 100, 90)
    mask = create_block_mask(heads, 2, 3, 100, 90, device="cpu", BLOCK_SIZE=16)
    with pytest.raises(ValueError, match="it can only stand last in a slice"):
        mask[:, :, torch.tensor([6, 2])]
    part = mask[1, 1:, 2:][:, 1, torch.tensor([3, 0])]
    rows = torch.tensor([*range(80, 96), *range(32, 48)])
    out = flex_attention(q[1:, 2:, rows], k[1:, 2:], v[1:, 2:], None, part, kernel_options=OPTIONS)
    torch.testing.assert_close(out, dense(q, k, v, None, heads)[0][1:, 2:, rows], rtol=1e-5, atol=1e-5)


def test_a_slice_has_no_function_of_its_own(qkv: Any, dense: Any) -> None:
    """Shifting the function of a slice would shift twice: it raises, as torch's does. One that is set counts."""
    q, k, v = qkv(1, 1, 100)
    part = create_block_mask(causal, None, None, 100, 100, device="cpu", BLOCK_SIZE=10)[:, :, 3]
    with pytest.raises(RuntimeError, match="has no mask_mod of its own"):
        part.mask_mod(0, 0, 0, 0)
    part.mask_mod = lambda b, h, i, j: causal(b, h, i + 30, j)
    out = flex_attention(q[:, :, 30:40], k, v, None, part, kernel_options=OPTIONS)
    torch.testing.assert_close(out, dense(q, k, v, None, causal)[0][:, :, 30:40], rtol=1e-5, atol=1e-5)


def test_cropping(qkv: Any, dense: Any) -> None:
    mask = create_block_mask(causal, None, None, 256, 256, device="cpu")
    q, k, v = qkv(1, 1, 70)
    out = flex_attention(q, k, v, None, mask._adjust(70, 70), kernel_options=OPTIONS)
    torch.testing.assert_close(out, dense(q, k, v, None, causal)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_masks_of_torch(qkv: Any, dense: Any) -> None:
    """Those of create_block_mask, and lists with a function: full blocks skip it, as in torch's kernels."""
    q, k, v = qkv(2, 3, 96)
    theirs = torchs.create_block_mask(heads, 2, 3, 96, 96, device="cpu", BLOCK_SIZE=32)
    for mask in (theirs, BlockMask.of(theirs)):
        out = flex_attention(q, k, v, None, mask, kernel_options=OPTIONS)
        torch.testing.assert_close(out, dense(q, k, v, None, heads)[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(BlockMask.of(theirs).to_dense(), theirs.to_dense().int())
    part = BlockMask.of(theirs)[1, 2]
    assert torch.equal(part.to_dense(), theirs.to_dense()[1:, 2:].int())
    ones, first = torch.ones(1, 1, 3, dtype=torch.int32), torch.zeros(1, 1, 3, 3, dtype=torch.int32)
    lists = torchs.BlockMask.from_kv_blocks(ones * 0, first, ones, first, BLOCK_SIZE=32, mask_mod=causal)
    out = flex_attention(q, k, v, None, lists, kernel_options=OPTIONS)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :32], v[:, :, :32])
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


def test_making_one_takes_no_memory() -> None:
    tracemalloc.start()
    mask = create_block_mask(and_masks(causal, MASKS["heads"]), 8, 64, 1 << 20, 1 << 20, device="cpu")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask.numel() == 8 * 64 << 40
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: create_block_mask(causal, None, None, -1, 4), "Q_LEN must not be negative, found -1"),
        (lambda: create_block_mask(causal, None, None, 4, 4, BLOCK_SIZE=0), "one or two positive numbers, found 0"),
        (lambda: BlockMask.from_kv_blocks(torch.ones(1, 1, 3), torch.zeros(1, 1, 4, 4)), r"\[..., rows, columns\] indices"),
        (
            lambda: BlockMask.from_kv_blocks(torch.ones(1, 1, 4), torch.zeros(1, 1, 4, 4), seq_lengths=(100, 512)),
            r"4 x 4 blocks of \(128, 128\) do not make up the lengths \(100, 512\)",
        ),
        (lambda: BlockMask.from_kv_blocks(torch.ones(1, 1, 4), torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4)), "given together"),
    ],
)
def test_what_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    mask = create_block_mask(causal, 2, None, 300, 300, device="cpu")
    with pytest.raises(IndexError, match="index 2 is outside of an axis of 2"):
        mask[2]
    with pytest.raises(IndexError, match="found 4 indices"):
        mask[0, 0, 0, 0]
