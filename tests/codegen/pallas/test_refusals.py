"""What has no Pallas kernel is refused by its name and the reason; so is a machine without JAX."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plans import softmax

import einfuse
from einfuse.codegen import pallas
from einfuse.codegen.plan import Block, Kept, KernelPlan


@pytest.mark.parametrize(
    ("change", "ranks"),
    [
        (lambda plan: replace(plan, ambient=(plan.ambient[0], Block("h", "H", 1, turns=True))), "h"),
        (lambda plan: replace(plan, kept=(Kept("room", "i", "Nk"),)), "i"),
    ],
    ids=["turns", "kept"],
)
def test_programs_that_keep_rows(change: Callable[[KernelPlan], KernelPlan], ranks: str) -> None:
    plan = change(softmax().plan)
    with pytest.raises(
        einfuse.EinfuseError, match=f"softmax: the points of {ranks} run one after the other and keep rows, .* pallas"
    ):
        pallas.emit(plan)


def test_scans() -> None:
    attention = einfuse.compile("gated_delta", backend="pallas")
    with pytest.raises(
        einfuse.EinfuseError, match="gated_delta is a scan, for which the back end pallas has no kernels; use cpu"
    ):
        attention.source("pallas")


def test_a_machine_without_jax(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The text is there; the kernel is not."""
    monkeypatch.setitem(sys.modules, "jax", None)
    attention = einfuse.compile("causal", backend="pallas")
    assert "pl.pallas_call(" in attention.source("pallas", torch.float32)
    q = torch.randn(1, 1, 4, 8)
    with pytest.raises(einfuse.EinfuseError, match=r"runs on JAX, which is not installed: pip install 'einfuse\[pallas\]'"):
        attention(q, q, q)
