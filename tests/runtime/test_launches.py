"""Launches with few rows go over parts of the keys: the same result, on every back end, and only where that keeps workers busy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from narrowed import only
from noting import noting
from torch.fx.experimental.proxy_tensor import make_fx

import einfuse
from einfuse.runtime import integers, launch, split
from einfuse.runtime.backends import BACKENDS, BackendName
from einfuse.runtime.graph import Graph


def workers(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    for backend in BACKENDS.values():
        monkeypatch.setattr(type(backend), "workers", lambda self, device: count)
    monkeypatch.setattr(split, "FEWEST", 8)


def test_parts_keep_the_workers_busy() -> None:
    assert split.parts(items=2, keys=16384, workers=8) == 4
    assert split.parts(items=3, keys=16384, workers=8) == 2
    assert split.parts(items=8, keys=16384, workers=8) == 1
    assert split.parts(items=1, keys=1000, workers=8) == 1
    assert split.parts(items=0, keys=1000, workers=8) == 1


@pytest.mark.parametrize(
    "backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow), pytest.param("triton", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["alibi", "softmax1"])
def test_parts_give_the_whole(name: str, backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    workers(monkeypatch, 8)
    attn = einfuse.compile(name, backend=backend)
    q, k, v = (torch.randn(1, 2, n, 16) for n in (3, 77, 77))
    extra = {"slope": torch.rand(2)} if name == "alibi" else {}
    asked: list[int] = []
    real = split.nodes
    monkeypatch.setattr(split, "nodes", noting(asked, lambda program, count, *rest: count, real))
    out = attn(q, k, v, **extra)
    assert asked == [9 if backend == "triton" else 4]  # three programs a multiprocessor, as far as there are keys
    torch.testing.assert_close(out, only(attn.reference(q, k, v, **extra, dtype=torch.float64)).float(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("backend", ["cpu", pytest.param("triton", marks=pytest.mark.slow)])
def test_a_call_like_an_earlier_one_is_not_that_one(backend: BackendName) -> None:
    """What is kept of a call is neither its numbers, nor its strides, nor what its tensors held. (The back end `torch` reads no strides.)"""
    attn = einfuse.compile("document", backend=backend)
    q, k, v = (torch.randn(1, 2, 30, 8) for _ in range(3))
    doc = torch.arange(30, dtype=torch.int32)[None] // 10

    def right(*args: torch.Tensor) -> None:
        """Without a gradient to record, and with one: the two are kept apart."""
        expected = only(attn.reference(*args, doc=doc)).float()
        for found in (attn(*args, doc=doc), attn(*(x.detach().requires_grad_() for x in args), doc=doc)):
            torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-6)

    right(q, k, v)
    right(q, k, v)
    right(v, q, k)
    right(q.mT.contiguous().mT, k, v)
    doc += torch.arange(30) // 15
    right(q, k, v)
    window = einfuse.compile("sliding_window", backend=backend)
    for width in (3, 7):
        torch.testing.assert_close(
            window(q, k, v, window=width), only(window.reference(q, k, v, window=width)).float(), rtol=2e-5, atol=2e-6
        )
    with pytest.raises(ValueError, match="axis"):
        attn(q, k[:, :, 1:], v, doc=doc)


def test_a_bound_call_keeps_where_tensors_lie_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From the second call of a signature on pointers alone are read: whatever else a call may change is another signature."""
    attn = einfuse.compile("sliding_window", backend="cpu")
    q, k, v, other = (torch.randn(1, 2, 9, 8) for _ in range(4))

    def right(*args: torch.Tensor, window: int = 4, allowed: float = 2e-5) -> torch.Tensor:
        expected = attn.reference(*args, window=window)
        kept = [only(attn(*args, window=window)) for _ in range(5)]
        for found in kept:
            assert found.dtype == args[0].dtype
            assert found.is_contiguous()
            torch.testing.assert_close(found.double(), expected, rtol=allowed, atol=allowed)
        assert len({x.data_ptr() for x in kept}) == 5, "every call has an output of its own"
        return kept[-1]

    def bound() -> int:
        return sum(x.again is not None for x in attn._calls.seen.values())

    right(q, k, v)
    assert bound() == 1
    right(other, q, k)
    assert bound() == 1, "other memory is the same signature"
    for n in range(3):
        args = [x.mT.contiguous().mT if n == m else x for m, x in enumerate((q, k, v))]
        right(*args)
    assert bound() == 4
    right(q[:, :, :8], k[:, :, 1:], v[:, :, 1:])
    right(*(x[:, :, ::2] for x in (q, k, v)))
    right(q, k, v, window=3)
    right(*(x.bfloat16() for x in (q, k, v)), allowed=2e-2)
    with torch.inference_mode():
        assert right(q, k, v).is_inference()
    before = bound()
    wanted = q.clone().requires_grad_()
    (found,) = torch.autograd.grad(right(wanted, k, v).sum(), wanted)
    (expected,) = torch.autograd.grad(only(attn.reference(wanted, k, v, window=4)).sum(), wanted)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    assert bound() == before + 1, "a call that is recorded is a signature of its own"
    with torch.autocast("cpu", torch.bfloat16):
        assert only(attn(q, k, v, window=4)).dtype == torch.bfloat16
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(right, *args) for args in ((q, k, v), (k, v, q), (v, q, k)) * 5]:
            job.result()
    capfd.readouterr()
    monkeypatch.setenv("EINFUSE_DEBUG", "launch")
    right(q, k, v)
    assert capfd.readouterr().err.count("# launch sliding_window") == 5, "launches are shown where they are asked for"


def test_a_step_of_new_lengths_is_bound_and_derives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of decoding is a signature of its own; up to a power of two nothing about it has to be worked out."""
    attn = einfuse.compile("sliding_window", backend="cpu")
    q, cache = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 64, 8)
    derived: list[str] = []
    check, build = integers.check, Graph.__init__
    monkeypatch.setattr(integers, "check", noting(derived, lambda *args: "ranges", check))
    monkeypatch.setattr(Graph, "__init__", noting(derived, lambda *args: "graph", build))
    for n in range(17, 32):
        k = cache[:, :, :n] if n % 2 else cache[:, :, :n].clone()
        for window in (4, 5):
            found, right = attn(q, k, k, window=window), only(attn.reference(q, k, k, window=window))
            torch.testing.assert_close(found, right.float(), rtol=2e-5, atol=2e-6)
        if n == 18:
            derived.clear()
    assert not derived
    assert all(x.again for x in attn._calls.seen.values())
    assert len(attn._calls.seen) >= 2 * 14
    attn(q, cache[:, :, :33], cache[:, :, :33], window=4)
    assert derived, "beyond the power of two"


def test_torch_sees_the_calls_it_has_to_see() -> None:
    """Kept calls do not bypass gradients, autocast, tracing, modes, meta tensors or profilers."""
    attn = einfuse.compile("full", backend="torch")
    q = torch.randn(1, 1, 9, 8)
    plain = only(attn(q, q, q))
    torch.testing.assert_close(attn(q, q, q), plain)
    assert only(attn(q.requires_grad_(), q, q)).requires_grad
    with torch.no_grad():
        assert not only(attn(q, q, q)).requires_grad
        with torch.autocast("cpu", torch.bfloat16):
            assert only(attn(q, q, q)).dtype == torch.bfloat16
        meta = q.to("meta")
        assert only(attn(meta, meta, meta)).is_meta
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            attn(q, q, q)
        assert any("einfuse::attention" in e.key for e in seen.key_averages())
        graph = make_fx(lambda x: attn(x, x, x))(q).graph
        assert any("einfuse" in str(n.target) for n in graph.nodes)
        with torch.inference_mode():
            torch.testing.assert_close(attn(q, q, q), plain.detach())


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow)])
def test_the_mask_of_a_short_call_is_not_looked_at(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    """In decoding a table grows in every step: a look would take longer than the call. Results are right without one, dead rows too."""
    looks: list[int] = []
    real = launch.fold_tiles
    monkeypatch.setattr(launch, "fold_tiles", noting(looks, lambda *args: 1, real))
    monkeypatch.setitem(launch.LOOK, "cpu", 2 * 2 * 70)
    attn = einfuse.compile(PADDED, backend=backend)
    for keys in (67, 68, 69, 70):
        q, k, v = (torch.randn(2, 2, n, 8) for n in (1, keys, keys))
        pad = torch.arange(keys)[None] >= torch.tensor([[3], [keys]])  # the second row has no key
        found, right = attn(q, k, v, pad), only(attn.reference(q, k, v, pad))
        torch.testing.assert_close(found, right.float(), rtol=2e-5, atol=2e-6)
        assert len(looks) == (keys == 70)


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow)])
def test_the_mask_of_a_short_call_is_looked_at_where_it_comes_again(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As layers of a model share one: by the second, for all that follow, until it is written to."""
    looks: list[int] = []
    real = launch.fold_tiles
    monkeypatch.setattr(launch, "fold_tiles", noting(looks, lambda *args: 1, real))
    monkeypatch.setitem(launch.LOOK, "cpu", 1000)
    attn = einfuse.compile(PADDED, backend=backend)
    pad = torch.arange(66)[None] >= torch.tensor([[3], [66]])

    def layers(count: int, q: int = 1) -> int:
        looks.clear()
        for _ in range(count):
            q_, k, v = (torch.randn(2, 2, n, 8) for n in (q, 66, 66))
            torch.testing.assert_close(attn(q_, k, v, pad), only(attn.reference(q_, k, v, pad)).float(), rtol=2e-5, atol=2e-6)
        return len(looks)

    assert [layers(1), layers(1), layers(3)] == [0, 1, 0]
    assert backend == "torch" or all(x.again for x in attn._calls.seen.values())
    pad[1, 5:9] = True
    assert [layers(1), layers(2)] == [0, 1]
    assert layers(3, q=2) == 1, "other rows"


@pytest.mark.slow
@pytest.mark.parametrize("look", [0, 1 << 20])
def test_a_bound_call_reads_the_mask_that_it_is_given(look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where masks are looked at in every call, and where they never are: other values in other memory, and in the same."""
    monkeypatch.setitem(launch.LOOK, "cpu", look)
    attn = einfuse.compile(PADDED, backend="cpu")
    q, k, v = (torch.randn(2, 2, n, 8) for n in (1, 150, 150))
    for first in (3, 140, 150, 70):
        pad = torch.arange(150)[None] >= torch.tensor([[first], [0]])
        for _ in range(3):
            torch.testing.assert_close(attn(q, k, v, pad), only(attn.reference(q, k, v, pad)).float(), rtol=2e-5, atol=2e-6)
            pad[1, :50] ^= True
    assert [x.again is not None for x in attn._calls.seen.values()] == [True], "one signature"


PADDED = """
attention padded over b, h {
  rank i: query; rank j: key; rank d: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, d]
  in pad[b, j]: bool
  o[i, d] = sum[j](softmax[j](sum[d](q * k)) * v) where pad
  out o
}
"""
