"""Launches with few rows go over parts of the keys: the same result, on every back end, and only where that keeps workers busy."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse.runtime import split
from einfuse.runtime.backends import BACKENDS, BackendName


def workers(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for backend in BACKENDS.values():
        monkeypatch.setattr(type(backend), "workers", lambda self, device: count)
    monkeypatch.setattr(split, "FEWEST", 8)


def test_parts_keep_the_workers_busy() -> None:
    assert split.parts(items=2, keys=16384, workers=8) == 4
    assert split.parts(items=3, keys=16384, workers=8) == 3
    assert split.parts(items=8, keys=16384, workers=8) == 1
    assert split.parts(items=1, keys=1000, workers=8) == 1
    assert split.parts(items=0, keys=1000, workers=8) == 1


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow), pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["alibi", "softmax1"])
def test_parts_give_the_whole(name: str, backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    workers(monkeypatch, 8)
    attn = einfuse.compile(name, backend=backend)
    q, k, v = (torch.randn(1, 2, n, 16) for n in (3, 77, 77))
    extra = {"slope": torch.rand(2)} if name == "alibi" else {}
    asked: list[int] = []
    real = split.ready
    monkeypatch.setattr(split, "ready", lambda program, count, *rest: asked.append(count) or real(program, count, *rest))
    out = attn(q, k, v, **extra)
    assert asked == [4]
    torch.testing.assert_close(out, attn.reference(q, k, v, **extra).float(), rtol=2e-5, atol=2e-6)
