"""Integers beyond 32 bits: refused with the expression that has them, but where only their low bits count."""

from __future__ import annotations

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.runtime.backends import BackendName

WIDE = 2**32
HEAD = """attention wide(window: int = 4, seed: int = 1) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in t[b, j]: int
  in u[b, i]: int
"""
TAIL = "\n  o[i, e] = sum[j](softmax[j](s) * v)\n  out o\n}"


def wide(score: str, backend: BackendName = "torch") -> einfuse.Attention:
    return einfuse.compile(f"{HEAD}  s = sum[d](q * k) {score}{TAIL}", backend=backend)


def inputs(t: torch.Tensor, u: torch.Tensor) -> dict[str, torch.Tensor]:
    return {n: torch.randn(1, 2, length, w) for n, length, w in (("q", 5, 8), ("k", 7, 8), ("v", 7, 4))} | {"t": t, "u": u}


def small() -> dict[str, torch.Tensor]:
    return inputs(torch.arange(7)[None] % 3, torch.arange(5)[None] % 3)


@pytest.mark.parametrize("backend", ["torch", "loops", "cpu", "triton"])
def test_tables_beyond_32_bits_are_refused(backend: BackendName) -> None:
    """Cut off, 0 and 2^32 would be one document."""
    x = small()
    x["t"] = x["t"] + WIDE * (torch.arange(7) % 2)
    with pytest.raises(ValueError, match=r"wide: t\[b, j\] goes from 0 to 4294967298, and integers of kernels have 32 bits"):
        wide("where t == u", backend)(**x)


@pytest.mark.parametrize(
    ("score", "change", "phrase"),
    [
        ("where t < u", {"u": -WIDE}, r"u\[b, i\] goes from -4294967296 to -4294967294"),
        ("+ float(t - u) / 1e11", {"t": 2**31 - 3, "u": -9}, r"t\[b, j\] - u\[b, i\] goes from 2147483652 to"),
        ("+ sum[d](q * k[b, h, (t + j) % Nk, d])", {"t": WIDE}, r"t\[b, j\] goes"),
        ("+ 1.0 * (t // 4294967296)", {}, "is 4294967296"),
        ("+ 1.0 * (t * 100000 % 7)", {"t": 10**5}, r"t\[b, j\] \* 100000 goes"),
        ("where i - j < window", {"window": 2**40}, "window is 1099511627776"),
        ("+ random(t // 2, i)", {"t": WIDE}, r"t\[b, j\] goes"),
        ("+ 1.0 * (j * 1000000000 % 5)", {}, r"j \* 1000000000 goes from 0 to 6000000000"),
    ],
)
def test_what_does_not_fit_is_named(score: str, change: dict[str, int], phrase: str) -> None:
    given: dict[str, torch.Tensor | int] = {**small(), **{n: c for n, c in change.items() if n == "window"}}
    given |= {n: given[n] + c for n, c in change.items() if n != "window"}
    with pytest.raises(ValueError, match=phrase):
        wide(score)(**given)
    with pytest.raises(ValueError, match=phrase):
        torch.compile(wide(score), backend="aot_eager")(**given)


@pytest.mark.parametrize("backend", ["torch", "loops", "cpu", "triton"])
def test_hashes_of_wide_integers_are_those_of_their_low_bits(backend: BackendName) -> None:
    attention = wide("+ 4 * random(t * 5 - seed, i * 2000000000, u)", backend)
    x = small()
    generator = torch.Generator().manual_seed(1)
    for name in "tu":
        x[name] = x[name] + WIDE * torch.randint(-(2**30), 2**30, x[name].shape, generator=generator)
    found, truth = attention(**x, seed=2**45 + 7), attention.reference(**x, seed=2**45 + 7, dtype=torch.float64)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-5)
    low = only(attention(**x | {n: x[n] % WIDE for n in "tu"}, seed=7))
    assert torch.equal(found, low)


def test_a_call_like_an_earlier_one_is_looked_at_too() -> None:
    attention, x = wide("where t == u"), small()
    with torch.no_grad():
        for _ in range(3):
            attention(**x)
        x["t"][0, 3] = WIDE
        with pytest.raises(ValueError, match="4294967296"):
            attention(**x)
        x["t"][0, 3] = 2**31 - 1
        attention(**x)


def test_narrow_tables_may_make_wide_numbers() -> None:
    x = small()
    x["t"] = torch.full((1, 7), 2**30, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"t\[b, j\] \+ t\[b, j\] goes|2 \* t|t\[b, j\] \* 2"):
        wide("where t * 2 < 5")(**x)
    wide("where t < 5 or j == 0")(**x)


def test_lists_may_hold_wide_integers() -> None:
    attention, x = wide("where j in t[b]"), small()
    x["t"] = torch.tensor([[WIDE + 1, 0, -WIDE, 4, 2**62, WIDE, 6]])
    found, truth = attention(**x), attention.reference(**x, dtype=torch.float64)
    assert isinstance(found, torch.Tensor)
    torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-5)
    assert torch.equal(found, only(attention(**x | {"t": torch.tensor([[0, 4, 6, 0, 0, 0, 0]])})))
