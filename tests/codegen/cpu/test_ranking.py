"""The choice by compiled code beside the one of the oracle: the same list, bit by bit, whatever the rows hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from noting import noting

import einfuse
from einfuse.codegen import cpu
from einfuse.ir import Cascade, interpret
from einfuse.ir.ranking import best
from einfuse.runtime import scoring

EXISTING = ((2, 3, 5), (3, 1), (5,), (2, 1, 1))
"""The axes of what exists, before that of the candidates: what is missing or 1 is the same for all."""


def rows(span: int, kind: str) -> torch.Tensor:
    x = torch.randn(2, 3, 5, span)
    match kind:
        case "equal":
            return x.mul(2).round()
        case "rising":
            return x.sort(-1).values
        case "no number":
            return x.masked_fill(x > 0.5, math.nan).masked_fill(x < -1, -math.inf).masked_fill((x > 0.3) & (x < 0.5), math.inf)
        case "zeros":
            return x * 0
        case _:
            return x


@pytest.mark.parametrize("kind", ["any", "equal", "rising", "no number", "zeros"])
def test_every_row_has_the_list_of_the_oracle(kind: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.manual_seed(0)
    folder = Path(tmp_path_factory.getbasetemp())
    for n, (span, slots) in enumerate(
        [(1, 1), (9, 20), (33, 16), (64, 8), (200, 16), (300, 3), (700, 280), (1500, 40), (5000, 64)]
    ):
        x = rows(span, kind)
        for exists in (None, torch.rand(*EXISTING[n % 4], span) > 0.5, torch.rand(5, 1) > 0.5):
            assert torch.equal(cpu.best(x, exists, slots, folder), best(x, exists, slots)), (span, slots)


def test_rows_that_are_scored_in_turn_choose_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of rows, the last one short, by kernels of several stages."""
    torch.manual_seed(0)
    attention = einfuse.compile("moba", block=4, best=3, backend="torch")
    selection = attention.selection
    assert selection is not None
    x = {n: torch.randn(1, 2, 21, 8) for n in "qkv"}
    whole = selection(x)["sel"]  # type: ignore[arg-type]  # tensors alone
    monkeypatch.setattr(scoring, "FEWEST", 4)
    monkeypatch.setattr(scoring, "MOST", {"cpu": 1})
    called: list[int] = []
    run = scoring.Windows.__call__
    monkeypatch.setattr(scoring.Windows, "__call__", noting(called, lambda self, known, rows, step: step, run))
    assert torch.equal(torch.as_tensor(selection(x)["sel"]), torch.as_tensor(whole))  # type: ignore[arg-type]
    assert called == [4]


def test_scores_that_no_kernel_computes_are_made_for_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of what an earlier step ranked: a list cut where its probabilities reach a mass reads them, and does not compute them again."""
    torch.manual_seed(0)
    selection = einfuse.compile("mass_blocks", backend="torch").selection
    assert selection is not None
    q, k, v = torch.randn(3, 1, 2, 21, 8)
    whole = selection({"q": q, "k": k, "v": v, "mass": 0.9})["sel"]
    read: list[list[str]] = []

    def counted(c: Cascade, *given: Any) -> dict[str, torch.Tensor]:
        read.append([t.name for t in c.inputs if not t.param])
        return interpret(c, *given)

    monkeypatch.setattr(scoring, "FAR", 1)
    monkeypatch.setattr(scoring, "interpret", counted)
    assert torch.equal(torch.as_tensor(selection({"q": q, "k": k, "v": v, "mass": 0.9})["sel"]), torch.as_tensor(whole))
    assert read == [["p", "at"]] * 6, "six blocks of queries"
