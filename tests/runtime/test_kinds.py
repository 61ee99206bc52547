"""Calls of one kind share a graph, whatever their lengths, strides and numbers; every call is the oracle's all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.runtime import split
from einfuse.runtime.backends import BACKENDS, BackendName
from einfuse.runtime.examples import example_inputs
from einfuse.runtime.given import Given
from einfuse.runtime.sizes import Shape

SHARED = """attention shared_keys(window: int = 1000) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in pad[b, j]: bool
  s = sum[d](q * k) / sqrt(D) where pad and j - i < window
  p = softmax[j](s)
  o[i, e] = sum[j](p * v)
  l[i] = sum[j](exp(s))
  out o, l
}"""
BOTH = ["torch", pytest.param("cpu", marks=pytest.mark.slow)]


def calls(queries: int, lengths: Iterator[int] | range) -> Iterator[tuple[torch.Tensor, ...]]:
    """Keys that grow in a cache, so that they have strides of their own, under padding."""
    cache = torch.randn(2, 2, 2, 200, 8)
    pad = torch.rand(2, 200) < 0.8
    for n in lengths:
        yield torch.randn(2, 4, queries, 8), cache[0, :, :, :n], cache[1, :, :, :n], pad[:, :n]


def check(attention: einfuse.Attention, *args: torch.Tensor, **numbers: int) -> None:
    found = attention(*args, **numbers)
    for mine, right in zip(found, attention.reference(*args, **numbers, dtype=torch.float64), strict=True):
        torch.testing.assert_close(mine, right.float(), rtol=2e-5, atol=2e-6)


def workers(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for backend in BACKENDS.values():
        monkeypatch.setattr(type(backend), "workers", lambda self, device: count)


@pytest.fixture(params=BOTH)
def attention(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> einfuse.Attention:
    workers(monkeypatch, 1)  # more may take keys in parts
    return einfuse.compile(SHARED, backend=request.param)


@pytest.mark.parametrize("name", ["causal", "retention", "linformer", "moba"])
def test_a_graph_belongs_to_one_back_end(name: str) -> None:
    """Of one kernel, of a scan, of several kernels and of lists, forward and backward."""
    attention = einfuse.compile(name)
    inputs = example_inputs(attention.cascade, torch.float32, 0, Shape(1, 2, 32, 32, (8, 8), 1))
    given = Given.called(attention.cascade, (), inputs)
    keys = {attention.program.key(given, b, backward=after) for b in BACKENDS.values() for after in (False, True)}
    assert len(keys) == 2 * len(BACKENDS)


@pytest.mark.parametrize("queries", [1, 3])
def test_keys_that_grow_take_a_graph_for_a_power_of_two(attention: einfuse.Attention, queries: int) -> None:
    for args in calls(queries, range(30, 68, 2)):
        check(attention, *args)
    assert len(attention._calls.known) == 3, "30 to 32, to 64, and beyond"


def test_numbers_and_strides_are_those_of_the_call(attention: einfuse.Attention) -> None:
    for window, (q, k, v, pad) in zip((5, 9, 1000, 7), calls(3, range(40, 44)), strict=True):
        check(attention, q, k, v, pad, window=window)
        check(attention, q.mT.contiguous().mT, k, v, pad, window=window)
        check(attention, q, k.contiguous(), v.expand_as(v), pad, window=window)
    assert len(attention._calls.known) == 1


def test_no_keys_one_query_and_several_are_kinds_of_their_own(attention: einfuse.Attention) -> None:
    """One query takes heads as rows; without keys there is nothing to sum; a call without queries gives nothing."""
    for queries in (5, 1, 0, 2, 1, 5):
        for args in calls(queries, iter((3, 0, 1, 4, 2))):
            check(attention, *args)


def test_saved_statistics_have_the_lengths_of_the_call(attention: einfuse.Attention) -> None:
    """With a gradient to record."""
    lengths = (33, 64, 40, 34)
    for rows, (_, k, v, pad) in zip(lengths, calls(1, iter(lengths)), strict=True):
        leaves = [x.clone().requires_grad_() for x in (torch.randn(2, 4, rows, 8), k, v)]
        grads = []
        for run in (attention, attention.reference):
            out = run(*leaves, pad)
            assert isinstance(out, tuple)
            grads.append(torch.autograd.grad(out[0].double().sin().sum() + out[1].double().log().sum(), leaves))
        torch.testing.assert_close(*grads, rtol=2e-4, atol=2e-5)
    forward = [key for key in attention.program.graphs if key[:1] == ("forward",) and key[1] and key[2] == attention.backend]
    assert len(forward) == 1, "the lengths lie in one power of two"


@pytest.mark.parametrize("backend", BOTH)
def test_parts_are_cut_from_the_keys_of_the_call(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds of the parts, and the sizes that merging takes as numbers, follow keys that grow."""
    workers(monkeypatch, 8)
    monkeypatch.setattr(split, "FEWEST", 8)
    attention = einfuse.compile(AVERAGED, backend=backend)
    for keys in (17, 33, 40, 47, 64, 24, 23):
        q, k, v = (torch.randn(1, 2, n, 8) for n in (1, keys, keys))
        torch.testing.assert_close(attention(q, k, v), only(attention.reference(q, k, v)).float(), rtol=2e-5, atol=2e-6)
    assert len(attention._calls.known) == 5, "40 and 47 are one kind, and so are 17 and 23"


AVERAGED = """attention averaged over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  o[i, e] = sum[j](softmax[j](sum[d](q * k)) * v) / Nk
  out o
}"""
"""What merges its parts takes the number of keys as a number."""
