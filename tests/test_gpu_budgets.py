"""Budgets of GPU kernels, read from their machine code: one that starts to wait for its matrix products, to spill, or to take 5 % more
instructions per score fails.

`pytest tests/test_gpu_budgets.py --update-golden` writes down what the kernels take now: read the difference.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import einfuse
from einfuse.runtime.static import KernelReport, static

BUDGETS = Path(__file__).with_name("gpu_budgets.json")
SLACK = 1.05
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


def reports(name: str) -> list[KernelReport]:
    spec, queries, width, backward = CALLS[name]
    shapes = {"q": (4, 16, queries, width), "k": (4, 16, 4096, width), "v": (4, 16, 4096, width)}
    given = {n: torch.empty(s, dtype=torch.bfloat16, device="meta") for n, s in shapes.items()}
    return static(einfuse.compile(spec), given, backward)


@pytest.mark.parametrize("name", CALLS)
def test_kernels_stay_within_their_budgets_and_wait_for_no_matrix_product(name: str, request: pytest.FixtureRequest) -> None:
    compiled = reports(name)
    assert [k.name for k in compiled if k.serialised or any(w.startswith("C751") for w in k.warnings)] == []
    found = {k.name: {"spills": k.spills, "per score": [round(x.per_score, 2) for x in k.loops]} for k in compiled}
    known = json.loads(BUDGETS.read_text())
    if request.config.getoption("--update-golden"):
        known[name] = found
        BUDGETS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    assert found.keys() == known[name].keys()
    over = []
    for kernel, budget in known[name].items():
        mine = found[kernel]
        if mine["spills"] > budget["spills"]:
            over.append(f"{kernel} spills {mine['spills']}")
        if len(mine["per score"]) != len(budget["per score"]):
            over.append(f"{kernel} has loops {mine['per score']}, had {budget['per score']}")
        for now, then in zip(mine["per score"], budget["per score"], strict=False):
            if now > SLACK * then:
                over.append(f"{kernel} takes {now} instructions per score, had {then}")
    assert over == []
