"""Calls of few rows on a GPU: a narrow tile, and parts of the keys that leave no multiprocessor with twice the work of others."""

from __future__ import annotations

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.runtime import binding
from einfuse.runtime.backends import TritonBackend
from einfuse.runtime.inside import launched
from einfuse.runtime.split import parts


def tile(queries: int, spec: str = "full", groups: int = 16) -> int:
    """The tile of the kernel that walks the keys."""
    shapes = {"q": (4, 16, queries, 64), "k": (4, groups, 4096, 64), "v": (4, groups, 4096, 64)}
    given = {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in shapes.items()}
    attention = einfuse.compile(spec)
    tensors, numbers = binding.arguments(attention.cascade, (), given)
    first = launched(attention, tensors, numbers, False, TritonBackend(target="sm_90", processors=132))[0].kernel.plan
    assert first.tile is not None  # type: ignore[union-attr]  # no scan
    return first.tile.block  # type: ignore[union-attr]


def test_one_row_takes_a_narrow_tile_and_many_a_wide_one() -> None:
    assert (tile(1), tile(16), tile(17)) == (16, 16, 64)
    assert tile(1, "gqa", groups=4) == 16  # four heads as rows


@pytest.mark.parametrize(
    ("items", "workers", "expected"),
    [(16, 132, 8), (64, 132, 2), (1, 132, 32), (131, 132, 1), (200, 132, 1), (3, 8, 2), (0, 8, 1)],
)
def test_parts_leave_the_busiest_worker_least_to_do(items: int, workers: int, expected: int) -> None:
    assert parts(items, 16384, workers) == expected


@pytest.mark.slow
def test_a_narrow_tile_computes_what_a_wide_one_does() -> None:
    torch.manual_seed(0)
    attention = einfuse.compile("gqa", backend="triton")
    q = torch.randn(1, 4, 1, 32, dtype=torch.bfloat16)
    k, v = (torch.randn(1, 2, 150, 32, dtype=torch.bfloat16) for _ in range(2))
    truth = attention.reference(*(x.double() for x in (q, k, v)))
    torch.testing.assert_close(only(attention(q, k, v)).double(), truth, rtol=2e-2, atol=2e-2)
