"""What cannot be traced is refused in one sentence, with the place in the user's function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from einfuse import SpecError
from einfuse.flex import create_block_mask, flex_attention

TABLE = torch.zeros(4, 4)
ARRAY = np.zeros(4)


def branches(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    if q_idx > kv_idx:
        return score
    return score * 2


def both(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(q_idx > 1 and kv_idx > 1, score, 0.0)


def with_math(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + math.exp(q_idx)


def unknown(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + torch.special.bessel_j0(score)


def in_place(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    TABLE.add_(1)
    return score


def in_place_method(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score.mul_(2)


def rows(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + TABLE[q_idx]


def whole(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + TABLE


def float_index(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + TABLE[q_idx / 2, kv_idx]


def many_indices(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + TABLE[b, q_idx, kv_idx]


def array(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + ARRAY[q_idx]


def item(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + q_idx.item()


def loop(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return sum(score for _ in range(q_idx))


def infinity(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(q_idx > 1, score, -float("inf")) * score


def nothing(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    score + 1


def small(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score.to(torch.complex64)


def overlap(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + (q_idx | kv_idx)


def few(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score.maximum()


def zero(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + q_idx // 0


SAID: list[tuple[Callable[..., Any], int, str]] = [
    (branches, 1, "the value of a traced number is not known"),
    (both, 1, "the value of a traced number is not known"),
    (with_math, 1, "a traced number has no value"),
    (unknown, 1, "`special_bessel_j0` cannot be traced"),
    (in_place, 1, "`add` works in place on a tensor"),
    (in_place_method, 1, "`mul_` works in place"),
    (rows, 0, "returns 4 numbers"),
    (whole, 1, r"a captured tensor of shape \(4, 4\) meets a single score"),
    (float_index, 1, "index 0 is a float, an integer is needed"),
    (many_indices, 1, r"3 indices for a captured tensor of 2 axes, shape \(4, 4\)"),
    (array, 1, "a traced number is no array of numpy"),
    (item, 1, "a traced number has no shape to change"),
    (loop, 1, "a traced number has no value"),
    (infinity, 1, "minus infinity can be chosen by torch.where"),
    (nothing, 0, "`nothing` returns nothing"),
    (small, 1, "a number cannot be cast to torch.complex64"),
    (overlap, 1, "`|` of integers whose bits overlap cannot be traced"),
    (few, 1, "`maximum` with these arguments cannot be traced: missing 1 required positional argument"),
    (zero, 1, "an integer is divided by what may be zero"),
]


@pytest.mark.parametrize(("fn", "below", "message"), SAID, ids=[fn.__name__ for fn, *_ in SAID])
def test_a_score_function(fn: Callable[..., Any], below: int, message: str) -> None:
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(SpecError, match=message.replace("|", r"\|")) as caught:
        flex_attention(x, x, x, fn)
    error = caught.value
    assert error.loc is not None
    assert error.loc.file == __file__
    assert error.line == fn.__code__.co_firstlineno + below
    assert "flex/tracer.py" not in str(error)
    assert TABLE.sum() == 0


def test_a_variable_that_is_assigned_to() -> None:
    x = torch.zeros(1, 1, 4, 8)
    calls = 0

    def counting(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        nonlocal calls
        calls += 1
        return score + calls

    with pytest.raises(SpecError, match="assigns to the captured variable `calls`"):
        flex_attention(x, x, x, counting)
    assert calls == 0


def test_functions_of_the_other_kind() -> None:
    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(SpecError, match="looks like a score function"):
        create_block_mask(lambda s, b, h, i, j: s, None, None, 4, 4)
    with pytest.raises(SpecError, match="give it to create_block_mask"):
        flex_attention(x, x, x, lambda b, h, i, j: i >= j)
    wide = torch.zeros(4, 65)
    with pytest.raises(SpecError, match="a mask reduces a vector of 65 numbers"):
        create_block_mask(lambda b, h, i, j: (wide[i] > wide[j]).any(), None, None, 4, 4)
    with pytest.raises(SpecError, match="which a mask cannot read"):
        flex_attention(x, x, x, lambda s, b, h, i, j: torch.where((wide[i] * wide[j]).sum() > 0, s, -float("inf")))
    with pytest.raises(SpecError, match="returns a int, a mask is a condition"):
        create_block_mask(lambda b, h, i, j: i - j, None, None, 4, 4)


class Reversed(torch.autograd.Function):
    """The identity, with a gradient of its own: it asks torch for nothing that a tracer could see."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return -grad


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(x: Any) -> Any:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return 7 * grad


class Holder:
    function, apply = Reversed, Squared.apply


OWN: dict[str, Any] = {
    "of a score": lambda score, b, h, i, j: Reversed.apply(score),  # type: ignore[no-untyped-call]  # torch does not type it
    "by an attribute": lambda score, b, h, i, j: Holder.function.apply(score),  # type: ignore[no-untyped-call]  # torch does not type it
    "a method": lambda score, b, h, i, j: Holder.apply(score),  # type: ignore[no-untyped-call]  # torch does not type it
    "of a part of a table": lambda score, b, h, i, j: score + Squared.apply(ROW[j]),  # type: ignore[no-untyped-call]  # torch does not type it
    "reentrant checkpoints": lambda score, b, h, i, j: torch.utils.checkpoint.checkpoint(torch.sin, score, use_reentrant=True),
}
ROW: torch.Tensor = torch.arange(6.0)


@pytest.mark.parametrize("name", OWN)
def test_a_function_with_a_backward_of_its_own_is_refused(name: str) -> None:
    x = torch.randn(1, 1, 6, 4)
    with pytest.raises(SpecError, match=r"test_refusals.py:\d+:\d+: `\w+` has a backward of its own"):
        flex_attention(x, x, x, OWN[name])


def test_a_function_with_a_backward_of_its_own_takes_whole_tables() -> None:
    x, table = torch.randn(1, 1, 6, 4), torch.randn(6, requires_grad=True)
    out = flex_attention(x, x, x, lambda score, b, h, i, j: score + Squared.apply(table)[j])  # type: ignore[no-untyped-call]  # torch does not type it
    (found,) = torch.autograd.grad(out.sum(), table)
    plain = table.detach().square().requires_grad_()
    expected = torch.autograd.grad(flex_attention(x, x, x, lambda score, b, h, i, j: score + plain[j]).sum(), plain)[0]
    torch.testing.assert_close(found, 7 * expected)
