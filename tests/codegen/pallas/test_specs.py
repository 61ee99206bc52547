"""Specs of the library on Pallas kernels in interpret mode, forward and backward, beside the oracle. Each is here for what is said of it."""

from __future__ import annotations

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.runtime.verify import Shape

pytest.importorskip("jax")

SPECS = {
    "softcap_window": "a window that moves with the row, shared keys, functions",
    "document": "live blocks from a table that is made at the call",
    "softmax_standardised": "several passes over the keys",
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [*((n, "float32") for n in SPECS), ("softcap_window", "bfloat16")])
def test_specs(name: str, dtype: str) -> None:
    found = einfuse.verify(
        einfuse.compile(name), backends=["pallas"], dtypes=[dtype], seed=5, shape=Shape(1, 2, 37, 41, (8, 4), 2), brief=True
    )
    assert any(r.what.startswith("d ") for r in found.rows)
    assert found.ok, [r for r in found.rows if not r.ok]


def test_a_number_of_the_call_changes_the_result() -> None:
    """Numbers and sizes are part of a compiled kernel: another number is another one."""
    q, k, v = (torch.randn(1, 1, 20, 8) for _ in range(3))
    window = einfuse.compile("sliding_window", backend="pallas")
    for width in (3, 9):
        torch.testing.assert_close(window(q, k, v, window=width), only(window.reference(q, k, v, window=width)).float())
