"""Budgets of GPU kernels, read from their machine code: one that starts to wait for its matrix products, to spill, or to take 5 % more
instructions per score fails.

`pytest tests/test_gpu_budgets.py --update-golden` writes down what the kernels take now: read the difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import einfuse
from einfuse.codegen.targets import Target
from einfuse.ir import Scalar
from einfuse.runtime.static import KernelReport, recorded, reports, static

BUDGETS = Path(__file__).with_name("gpu_budgets.json")
SLACK = 1.05
TARGET: Target = "sm_90"
COMPILER = "3.9.0"  # of Triton: another makes other code

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(version("triton") != COMPILER, reason=f"the budgets are those of Triton {COMPILER}"),
]

CALLS = {
    "causal 64 training": ("causal", 4096, 64, True),
    "decode 128": ("full", 1, 128, False),
    "softcap 64 training": ("softcap", 4096, 64, True),
    "causal 128 training": ("causal", 4096, 128, True),
    "softmax1 64 training": ("softmax1", 4096, 64, True),
    "rope 128": ("rope", 4096, 128, False),
}


def called(name: str) -> tuple[einfuse.Attention, dict[str, torch.Tensor | Scalar], bool]:
    spec, queries, width, backward = CALLS[name]
    shapes = {"q": (4, 16, queries, width), "k": (4, 16, 4096, width), "v": (4, 16, 4096, width)}
    return einfuse.compile(spec), {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in shapes.items()}, backward


def compiled() -> dict[str, list[KernelReport]]:
    """The kernels of every call: one process compiles them all, which takes seconds to start."""
    launches = {name: recorded(*called(name), TARGET) for name in CALLS}
    found = iter(reports([x for of_one in launches.values() for x in of_one], TARGET))
    return {name: [next(found) for _ in of_one] for name, of_one in launches.items()}


def over(found: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """What kernels take that they did not take before."""
    assert found.keys() == known.keys()
    said = []
    for kernel, budget in known.items():
        mine = found[kernel]
        if mine["spills"] > budget["spills"]:
            said.append(f"{kernel} spills {mine['spills']}")
        if len(mine["per score"]) != len(budget["per score"]):
            said.append(f"{kernel} has loops {mine['per score']}, had {budget['per score']}")
        for now, then in zip(mine["per score"], budget["per score"], strict=False):
            if now > SLACK * then:
                said.append(f"{kernel} takes {now} instructions per score, had {then}")
    return said


def test_kernels_stay_within_their_budgets_and_wait_for_no_matrix_product(request: pytest.FixtureRequest) -> None:
    every = compiled()
    assert static(*called("decode 128"), TARGET) == every["decode 128"], "of one call, as it was kept"
    waiting = {
        n: [k.name for k in ks if k.serialised or any(w.startswith("C751") for w in k.warnings)] for n, ks in every.items()
    }
    assert waiting == {n: [] for n in CALLS}
    found = {
        n: {k.name: {"spills": k.spills, "per score": [round(x.per_score, 2) for x in k.loops]} for k in ks}
        for n, ks in every.items()
    }
    if request.config.getoption("--update-golden"):
        BUDGETS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    known = json.loads(BUDGETS.read_text())
    assert found.keys() == known.keys()
    assert {n: over(found[n], known[n]) for n in CALLS} == {n: [] for n in CALLS}
