"""Calls of ever new shapes: nothing grows with their number, and threads that make them at once get their own results."""

from __future__ import annotations

import gc
import itertools
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.runtime.attention import Attention
from einfuse.runtime.recent import MOST, Recent

CHECKED = """attention checked(shift: int) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in table[Rows]: int
  in bias[Rows]
  s = sum[d](q * k) + bias[table[i]] where j <= i + shift
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}"""


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def mappings(x: object, seen: set[int]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Every mapping that hangs on one of our objects, with its place."""
    if id(x) in seen:
        return
    seen.add(id(x))
    names = getattr(type(x), "__slots__", ()) or ()
    fields = dict(getattr(x, "__dict__", {})) | {n: getattr(x, n) for n in names if isinstance(n, str) and hasattr(x, n)}
    for name, y in fields.items():
        parts = y.values() if isinstance(y, dict | Recent) else y if isinstance(y, list | tuple) else [y]
        if isinstance(y, dict | Recent):
            yield f"{type(x).__name__}.{name}", y
        for z in list(parts):
            if type(z).__module__.startswith("einfuse.runtime"):
                yield from mappings(z, seen)


def shapes(seed: int) -> Iterator[tuple[int, int, int, int]]:
    """Batch, heads, queries, keys: never twice the same in a row, thousands of different ones."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        b, h, i, j = torch.randint(1, 40, (4,), generator=draw).tolist()
        yield 1 + b % 3, 1 + h % 3, i, j


def call(attention: Attention, shape: tuple[int, int, int, int], backward: bool = False) -> torch.Tensor:
    b, h, i, j = shape
    q, k, v = (torch.full((b, h, n, 8), 0.5 + n / 80, requires_grad=backward) for n in (i, j, j))
    given: dict[str, Any] = {}
    if attention.name == "checked":
        given = {"table": torch.arange(i) % i, "bias": torch.linspace(0, 1, i), "shift": i % 7}
    found = attention(q, k, v, **given)
    out = found[0] if isinstance(found, tuple) else found
    if backward:
        torch.autograd.grad(out.sum(), (q, k, v))
    return out


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("spec", ["taylor2", CHECKED], ids=["taylor2", "checked"])
def test_nothing_grows_with_the_number_of_shapes(spec: str) -> None:
    """Eight hundred shapes, one call in twenty with its backward. After the first hundreds kernels and memory stay."""
    attention = einfuse.compile(spec, backend="cpu")
    calls = ((b, h, i, i if attention.name == "taylor2" else j) for b, h, i, j in shapes(0))

    def many(count: int) -> tuple[int, dict[str, int]]:
        for n, shape in enumerate(itertools.islice(calls, count)):
            call(attention, shape, n % 20 == 0)
        gc.collect()
        return resident(), {name: len(x) for name, x in mappings(attention, set())}

    before, early = many(400)
    after, late = many(400)
    assert max(late.values()) <= MOST, late
    kernels = {n for n in late if n.endswith((".built", ".kernels", ".linears"))}
    assert kernels
    assert {n: late[n] for n in kernels} == {n: early[n] for n in kernels}
    assert after - before < 10 * 2**20


@pytest.mark.slow
def test_threads_with_shapes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads call one attention while its kernels are built, more kinds of calls than are kept: each gets its own result."""
    attention = einfuse.compile(CHECKED.replace("checked", "checked_by_threads"), backend="cpu")
    plain = einfuse.compile("causal", backend="cpu")
    spec = attention.cascade.name

    def one(n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        out = []
        for b, h, i, j in itertools.islice(shapes(n), 60):
            draw = torch.Generator().manual_seed(i * j)
            q, k, v = (torch.randn(b, h, m, 8, generator=draw) for m in (i, j, j))
            scores = q @ k.mT / 8**0.5
            keep = torch.arange(j) <= torch.arange(i)[:, None]
            out.append((only(plain(q, k, v)), torch.softmax(scores.masked_fill(~keep, -torch.inf), -1) @ v))
            table, bias, shift = torch.arange(i).flip(0), torch.linspace(0, 1, i), i % 7
            keep = torch.arange(j) <= torch.arange(i)[:, None] + shift
            scores = (q @ k.mT + bias[table][:, None]).masked_fill(~keep, -torch.inf)
            out.append((only(attention(q, k, v, table=table, bias=bias, shift=shift)), torch.softmax(scores, -1) @ v))
        return out

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = [pair for part in pool.map(one, range(8)) for pair in part]
    finally:
        sys.setswitchinterval(interval)
    assert spec == "checked_by_threads"
    for mine, expected in found:
        torch.testing.assert_close(mine, expected, atol=2e-5, rtol=2e-5)
