"""What a GPU compiler makes of the kernels that a call takes: short sequences held whole, masks walked by lists."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.codegen.scan import ScanPlan
from einfuse.runtime.cross import taken


def call(batch: int, heads: int, n: int) -> dict[str, torch.Tensor]:
    return {x: torch.empty(batch, heads, n, 32, dtype=torch.bfloat16, device="meta") for x in "qkv"}


def test_the_kernels_of_a_call_are_those_of_its_sizes() -> None:
    full, swin = einfuse.compile("full"), einfuse.compile("swin", columns=28)
    (short,) = taken(full, torch.bfloat16, False, call(64, 2, 40), "sm_90")
    (long,) = taken(full, torch.bfloat16, False, call(64, 2, 400), "sm_90")
    assert (short.plan.tile, long.plan.tile is None) == (None, False)  # type: ignore[union-attr]  # no scan
    walked = taken(swin, torch.bfloat16, True, call(1, 2, 784), "sm_90")
    assert [c.plan.name for c in walked] == ["swin_walk", "swin_prepass", "swin_rows_walk", "swin_columns_j_walk"]
    scan, given = einfuse.compile("retention"), call(1, 2, 400) | {"slope": torch.empty(2, device="meta")}
    assert {type(c.plan) for c in taken(scan, torch.bfloat16, True, given, "sm_90")} == {ScanPlan}


@pytest.mark.slow
def test_they_compile_without_spilling() -> None:
    attention = einfuse.compile("swin", columns=28)
    (kernel,) = einfuse.cross_compile(attention, ("sm_80",), backward=False, call=call(1, 2, 784))
    assert (kernel.ok, kernel.matrix, kernel.tiling) == (True, "mma", (49, 49))
