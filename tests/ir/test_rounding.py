"""Arithmetic that rounds at random: what it moves, by how much, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from einfuse.ir.rounding import ARITHMETIC, STORAGE, Rounding, narrow

UNIT = 2.0**-24
X = torch.tensor([0.1, -0.3, 0.7, 1.87], dtype=torch.float64)


def rounded(fn: Callable[..., torch.Tensor], *args: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    with Rounding(dtype, 0):
        return fn(*args)


@pytest.mark.parametrize("fn", [torch.exp, torch.tanh, torch.rsqrt, lambda x: x / 3, lambda x: x + 1e-3, torch.log1p])
def test_what_the_type_cannot_hold_moves_up_or_down_by_the_error_of_arithmetic(fn: Callable[..., torch.Tensor]) -> None:
    x = torch.linspace(0.1, 0.9, 77, dtype=torch.float64)
    off = (rounded(fn, x) - fn(x)) / fn(x).abs() / (ARITHMETIC * UNIT)
    torch.testing.assert_close(off.abs(), torch.ones_like(off), rtol=1e-6, atol=0)
    assert 20 < (off > 0).sum() < 57


def test_what_the_type_holds_stays() -> None:
    whole = torch.arange(300, dtype=torch.float64)
    assert rounded(lambda x: (x * 3 + 1).sum(), whole) == (whole * 3 + 1).sum()
    assert rounded(torch.exp, torch.zeros(3, dtype=torch.float64)).eq(1).all()


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x.neg().abs().amax(),
        lambda x: torch.where(x > 0, x, 0.5 * torch.ones_like(x)),
        lambda x: x[torch.tensor([3, 0, 0])].reshape(3, 1).expand(3, 2).permute(1, 0).contiguous(),
        lambda x: torch.zeros(5, dtype=x.dtype).index_put((torch.arange(4),), x),
        lambda x: torch.cat([torch.maximum(x, x[[3, 2, 1, 0]]), x.clamp(min=0.2)]),
    ],
)
def test_what_only_chooses_or_moves_numbers_is_exact(fn: Callable[..., torch.Tensor]) -> None:
    assert torch.equal(rounded(fn, X), fn(X))


def off_by(fn: Callable[..., torch.Tensor], *args: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (rounded(fn, *args, dtype=dtype) - fn(*args)).abs() / (ARITHMETIC * UNIT)


def test_sums_are_off_by_the_unit_of_their_magnitudes() -> None:
    a, b = torch.stack([X, X]), torch.stack([X[[3, 2, 1, 0]], -X]).T
    torch.testing.assert_close(off_by(torch.matmul, a, b), a.abs() @ b.abs(), rtol=1e-6, atol=0)
    torch.testing.assert_close(off_by(torch.sum, torch.cat([X, -X])), 2 * X.abs().sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(off_by(torch.sub, X, X), 2 * X.abs(), rtol=1e-6, atol=0)
    torch.testing.assert_close(off_by(torch.add, X, -X), 2 * X.abs(), rtol=1e-6, atol=0)
    at = torch.zeros(4, dtype=torch.int64)
    scattered = off_by(lambda x: torch.zeros(2, dtype=x.dtype).index_put((at,), x, accumulate=True), X)
    torch.testing.assert_close(scattered, torch.stack([X.abs().sum(), torch.zeros_like(X[0])]), rtol=1e-6, atol=0)


def test_gradients_round_too_and_those_of_a_broadcast_as_the_sums_they_are() -> None:
    x, y = X.clone().requires_grad_(), torch.linspace(-1.1, 1.1, 50, dtype=torch.float64)
    with Rounding(torch.float32, 0):
        (found,) = torch.autograd.grad((x[:, None] * y).sum(), x)
    off = found.abs() / (ARITHMETIC * UNIT * y.abs().sum())  # the sum of y is 0
    assert off.gt(0.5).all()
    assert off.lt(1.5).all()


def test_sides_of_products_of_marked_matrices_are_held_in_16_bits_and_nothing_else_is() -> None:
    a, one = torch.linspace(0.1, 0.9, 77, dtype=torch.float64)[:, None], torch.ones(1, 1, dtype=torch.float64)

    def off(fn: Callable[..., torch.Tensor], x: torch.Tensor, *args: torch.Tensor) -> float:
        return off_by(fn, x, *args, dtype=torch.bfloat16).div(fn(x, *args)).amax().item()

    stored = STORAGE * 2.0**-8 / (ARITHMETIC * UNIT)
    assert off(torch.matmul, narrow(a.clone()), one) == pytest.approx(stored + 1, rel=1e-2)
    assert off(torch.matmul, a, one) == pytest.approx(1, rel=1e-3)
    assert off(torch.exp, narrow(a.clone())) == pytest.approx(1, rel=1e-3)
    held = narrow(a.to(torch.bfloat16).double())
    assert off(torch.matmul, held, one) == 0, "what the type holds"
    with Rounding(torch.bfloat16, 0, backward=True):
        product = torch.matmul(held, one + 0.5 * held[0] * held[1])
    exact = held * (1 + 0.5 * held[0] * held[1])
    assert (product / exact - 1).abs().amax() == pytest.approx(2 * STORAGE * 2.0**-8, rel=0.1), "a side and the result"


def test_in_a_backward_sums_of_marked_numbers_are_held_in_16_bits_however_they_are_taken() -> None:
    a, first = narrow(torch.linspace(0.1, 0.93, 77, dtype=torch.float64)), torch.zeros(77, dtype=torch.int64)
    ways: tuple[Callable[[], torch.Tensor], ...] = (
        lambda: a.sum()[None],
        lambda: torch.zeros(1, dtype=torch.float64).index_put((first,), a, accumulate=True),
    )
    for way in ways:
        with Rounding(torch.bfloat16, 0, backward=True):
            found = way()
        assert (found / a.sum() - 1).abs().item() == pytest.approx(STORAGE * 2.0**-8, rel=0.1)
        with Rounding(torch.bfloat16, 0):
            assert (way() / a.sum() - 1).abs().item() < 1e-6
    with Rounding(torch.bfloat16, 0, backward=True):
        moved = torch.zeros(77, dtype=torch.float64).index_put((torch.arange(77),), a, accumulate=True)
    assert (moved / a - 1).abs().amax() < 1e-6, "to move numbers is no sum"


def test_what_follows_from_marked_numbers_is_marked() -> None:
    with Rounding(torch.bfloat16, 0):
        y = torch.stack([narrow(X.clone())[None].exp().sum(), torch.ones((), dtype=torch.float64)]) / 3
        assert getattr(y, "_narrow", False)
        assert not hasattr(X.exp(), "_narrow")


def test_the_coins_are_the_seeds() -> None:
    one, same, other = (Rounding(torch.float32, *seed) for seed in ((3, 0), (3, 0), (3, 1)))
    found = []
    for mode in (one, same, other):
        with mode:
            found.append(torch.exp(torch.linspace(0.1, 0.9, 100, dtype=torch.float64)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    first = torch.linspace(0.1, 0.9, 100, dtype=torch.float64).exp()
    ups = "".join("+-"[int(x < y)] for x, y in zip(found[0][:16], first[:16], strict=True))
    assert ups == "+--+-++--+-+-+-+", "numpy's Philox gives the same on every machine"


def test_infinities_pass() -> None:
    x = torch.tensor([-torch.inf, torch.inf], dtype=torch.float64)
    assert torch.equal(rounded(torch.exp, x), torch.tensor([0, torch.inf], dtype=torch.float64))
    assert torch.equal(rounded(lambda x: x - 0.1, x), x)
