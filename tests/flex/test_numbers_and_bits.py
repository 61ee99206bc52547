"""Captured numbers keep where they came from; bits become arithmetic."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from einfuse.flex import create_block_mask, flex_attention, integers
from einfuse.flex.assemble import _COMPILED
from einfuse.flex.captures import Captures, Float, Int
from einfuse.ir import const


def test_arithmetic_of_captured_numbers() -> None:
    n, x = Int(7, ("n",)), Float(2.5, ("x",))
    assert n + 1 == 8
    assert isinstance(n + 1, Int)
    assert (2 * n).tag == ("mul", 2, ("n",))  # type: ignore[attr-defined]
    assert (1 / n).tag == ("truediv", 1, ("n",))  # type: ignore[attr-defined]
    assert isinstance(n * x, Float)
    assert isinstance(-n // 2, Int)
    assert -n // 2 == -4
    assert list(range(n)) == list(range(7))
    assert (n if n > 3 else 0) is n
    assert type(Float(1e308, ("x",)) * 1e308) is float  # infinite: no argument of a kernel


def test_lifting_finds_numbers_wherever_functions_hold_them() -> None:
    def outer(width: int, scale: float, name: str, parts: list[Any]) -> Any:
        def inner(a: Any, power: int = 3) -> Any:
            return width, scale, name, power, [p() for p in parts]

        return inner

    def part(n: int) -> Any:
        return lambda: n

    fn = outer(4, 0.5, "x", [part(1), part(2)])
    lifted = Captures().lifted(functools.partial(fn, power=9))
    width, scale, name, power, found = lifted(0)
    assert [type(v) for v in (width, scale, name, power, *found)] == [Int, Float, str, Int, Int, Int]
    assert (width, scale, name, power, found) == (4, 0.5, "x", 9, [1, 2])
    assert len({v.tag for v in (width, scale, power, *found)}) == 5 or found[0].tag == found[1].tag
    assert fn(0)[3] == 3
    plain = lambda a: a  # noqa: E731
    assert Captures().lifted(plain) is plain


def test_a_function_that_captures_itself() -> None:
    def countdown(n: int) -> int:
        return 0 if n == 0 else countdown(n - 1)

    assert Captures().lifted(countdown)(3) == 0


def test_another_number_is_the_same_kernel_and_another_constant_is_not() -> None:
    x = torch.randn(1, 1, 6, 4)

    def windowed(width: int) -> Any:
        return lambda b, h, i, j: (i - j <= width // 2) & (i >= j)

    def run(mask_mod: Any) -> torch.Tensor:
        mask = create_block_mask(mask_mod, None, None, 6, 6, device="cpu")
        out = flex_attention(x, x, x, None, mask, kernel_options={"backend": "torch"})
        assert isinstance(out, torch.Tensor)
        return out

    first = run(windowed(4))
    known = len(_COMPILED)
    assert not torch.equal(run(windowed(2)), first)
    assert torch.equal(run(windowed(5)), first)
    assert len(_COMPILED) == known
    run(lambda b, h, i, j: (i - j <= 2) & (i >= j))
    assert len(_COMPILED) == known + 1


@given(st.integers(0, 1 << 30), st.integers(0, 1 << 20), st.integers(0, 12), st.integers(0, 12))
def test_masks_and_shifts(x: int, mask: int, left: int, right: int) -> None:
    made = integers.moved(integers.moved(integers.masked(integers.of(const(x)), mask), left), -right)
    found = integers.value(made)
    assert found is not None
    assert found.value == (x & mask) << left >> right


@given(st.integers(-(1 << 20), 1 << 20), st.integers(0, 10))
def test_shifts_of_negative_numbers(x: int, by: int) -> None:
    for made, wanted in (
        (integers.moved(integers.of(const(x)), -by), x >> by),
        (integers.moved(integers.of(const(x)), by), x << by),
    ):
        found = integers.value(made)
        assert found is not None
        assert found.value == wanted


def test_unions() -> None:
    x, y = integers.masked(integers.of(const(0b1011)), 0b1100), integers.masked(integers.of(const(0b0110)), 0b0011)
    joined = integers.value(integers.union(x, y))
    assert joined is not None
    assert joined.value == 0b1010
    assert integers.value(integers.union(integers.of(const(1)), integers.of(const(2)))) is None


@pytest.mark.parametrize("code", [0, 1, 6, 27, 1234567])
def test_morton_codes(code: int) -> None:
    """The even bits of a number, gathered."""
    x = integers.masked(integers.of(const(code)), 0x55555555)
    for by, mask in ((1, 0x33333333), (2, 0x0F0F0F0F), (4, 0x00FF00FF), (8, 0x0000FFFF)):
        x = integers.masked(integers.union(x, integers.moved(x, -by)), mask)
    found = integers.value(x)
    assert found is not None
    assert found.value == int(f"{code:032b}"[1::2], 2)
