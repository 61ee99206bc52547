"""How often a kernel's loops run: counted from the plan beside a count of live blocks by hand."""

from __future__ import annotations

import math

import torch

import einfuse
from einfuse.codegen import KernelPlan
from einfuse.runtime import binding
from einfuse.runtime.backends import TritonBackend
from einfuse.runtime.graph import Recorded
from einfuse.runtime.inside import launched
from einfuse.runtime.static import job
from einfuse.runtime.trips import trips


def call(n: int, heads: int = 2) -> dict[str, torch.Tensor]:
    return {x: torch.empty(1, heads, n, 64, dtype=torch.bfloat16) for x in "qkv"}


def recorded(spec: str, backward: bool = False, **given: torch.Tensor) -> list[Recorded]:
    attention = einfuse.compile(spec)
    tensors, numbers = binding.arguments(attention.cascade, (), given)
    return launched(attention, tensors, numbers, backward, TritonBackend(target="sm_90", processors=132))


def counted(launch: Recorded, **tables: torch.Tensor) -> dict[str, float | None]:
    """Iterations of a program by label, over all loops of that label."""
    plan = launch.kernel.plan
    assert isinstance(plan, KernelPlan)
    out: dict[str, float | None] = {}
    for label, n in trips(plan, launch.given, tables):
        out[label] = None if n is None or out.get(label, 0) is None else (out.get(label) or 0) + n
    return out


def test_causal_tiles_go_up_to_the_diagonal() -> None:
    (launch,) = recorded("causal", False, **call(4096))
    plan = launch.kernel.plan
    assert isinstance(plan, KernelPlan)
    assert plan.tile is not None
    tile, step = plan.tile.block, next(s.step for s in plan.steps if hasattr(s, "step"))
    tiles = range(0, 4096, tile)
    full = sum(lo // step for lo in tiles) / len(tiles)
    every = sum(math.ceil((lo + tile) / step) for lo in tiles) / len(tiles)
    assert counted(launch) == {"full": full, "masked": every - full}


def test_a_window_runs_the_same_number_of_blocks_wherever_it_is() -> None:
    (launch,) = recorded("sliding_window", False, **call(8192))
    found = counted(launch)
    assert all(n is not None for n in found.values())
    assert sum(n or 0 for n in found.values()) < 8


def test_listed_blocks_are_counted_in_their_tables() -> None:
    doc = (torch.arange(4096) // 512).expand(1, 4096).contiguous()
    (launch,) = recorded("document", False, doc=doc, **call(4096))
    tensors = job(launch, "sm_90").tensors
    assert {"j_count", "j_block"} <= tensors.keys()


def test_decoding_splits_keys_over_the_processors_that_are_named() -> None:
    given = call(16384) | {"q": torch.empty(1, 2, 1, 64, dtype=torch.bfloat16)}
    assert len(recorded("full", False, **given)) == 2  # parts, and their merge
