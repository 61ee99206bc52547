"""Functions that compute something else at every call: drawn once for all points, they would be silently wrong."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from einfuse import SpecError
from einfuse.flex import create_block_mask, flex_attention

GENERATOR = torch.Generator().manual_seed(0)
DRAWS = np.random.default_rng(0)
TABLE = torch.ones(4)
COUNT = itertools.count()
STATE = {"calls": 0}


class Drifting:
    calls = 0

    def __call__(self, score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        self.calls += 1
        return score * self.calls


def counting(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    STATE["calls"] += 1
    return score * STATE["calls"]


def coin(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score * 2 if random.random() < 0 else score


def seeding(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    torch.manual_seed(int(torch.initial_seed()) + 1)
    return score


def listed() -> Callable[..., Any]:
    calls = [0]

    def counted(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        calls[0] += 1
        return score * calls[0]

    return counted


TWICE = "computes something else each time"
SCORES: dict[str, tuple[Callable[..., Any], str]] = {
    "rand": (lambda s, b, h, i, j: s + torch.rand(()), "`rand` draws random numbers once"),
    "randn": (lambda s, b, h, i, j: s + torch.randn(4)[i], "`randn` draws"),
    "randint": (lambda s, b, h, i, j: s + torch.randint(3, ()), "`randint` draws"),
    "randperm": (lambda s, b, h, i, j: s + torch.randperm(4)[i], "`randperm` draws"),
    "bernoulli": (lambda s, b, h, i, j: s + torch.bernoulli(TABLE)[i], "`bernoulli` draws"),
    "multinomial": (lambda s, b, h, i, j: s + torch.multinomial(TABLE, 4)[i], "`multinomial` draws"),
    "generator": (lambda s, b, h, i, j: s + torch.rand(4, generator=GENERATOR)[i], "`rand` draws"),
    "rand_like": (lambda s, b, h, i, j: s + torch.rand_like(s), "`rand_like` draws"),
    "dropout": (lambda s, b, h, i, j: functional.dropout(s), "`dropout` draws"),
    "method": (lambda s, b, h, i, j: s.bernoulli(), "`bernoulli` draws"),
    "in place": (lambda s, b, h, i, j: s.uniform_(), "`uniform` draws"),
    "of a table": (lambda s, b, h, i, j: s + functional.dropout(TABLE)[i], "`dropout` draws"),
    "gumbel": (lambda s, b, h, i, j: s + functional.gumbel_softmax(TABLE)[i], "`exponential` draws"),
    "distribution": (lambda s, b, h, i, j: s + torch.distributions.Normal(0.0, 1.0).sample(), "`normal` draws"),
    "empty": (lambda s, b, h, i, j: s + torch.empty(4)[i], "`empty` holds what was in memory"),
    "new_empty": (lambda s, b, h, i, j: s + s.new_empty(()), "`new_empty` holds"),
    "random": (lambda s, b, h, i, j: s + random.random(), TWICE),
    "numpy": (lambda s, b, h, i, j: s + float(np.random.rand()), TWICE),
    "numpy table": (lambda s, b, h, i, j: s + torch.from_numpy(np.random.rand(4))[i], TWICE),
    "numpy generator": (lambda s, b, h, i, j: s + float(DRAWS.random()), TWICE),
    "coin": (coin, "`coin` draws random numbers"),
    "seed": (seeding, "`seeding` draws random numbers"),
    "time": (lambda s, b, h, i, j: s + time.perf_counter(), TWICE),
    "iterator": (lambda s, b, h, i, j: s + next(COUNT), TWICE),
    "dictionary": (counting, TWICE),
    "attribute": (Drifting(), TWICE),
    "list": (listed(), "`counted` assigns to the captured variable `calls`"),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_score_that_changes_from_call_to_call_is_refused(name: str) -> None:
    fn, said = SCORES[name]
    x = torch.zeros(1, 1, 4, 8)
    for _ in range(2):
        with pytest.raises(SpecError, match=said) as caught:
            flex_attention(x, x, x, fn)
        assert caught.value.loc is None or caught.value.loc.file == __file__


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(()), lambda: random.random(), lambda: float(np.random.rand())], ids=["torch", "python", "numpy"]
)
def test_a_mask_that_is_drawn_is_refused_when_it_is_made(draw: Callable[[], Any]) -> None:
    with pytest.raises(SpecError, match="draw"):
        create_block_mask(lambda b, h, i, j: i >= j + draw() * 4, None, None, 4, 4, device="cpu")


def test_tables_drawn_outside_of_the_function_are_read() -> None:
    keep = torch.rand(4, 4, generator=GENERATOR) < 0.7
    keep.fill_diagonal_(True)
    x = torch.randn(1, 1, 4, 8)
    mask = create_block_mask(lambda b, h, i, j: keep[i, j] & (torch.ones(4) > 0)[j], None, None, 4, 4, device="cpu")
    wanted = torch.nn.functional.scaled_dot_product_attention(x, x, x, keep)
    torch.testing.assert_close(flex_attention(x, x, x, None, mask, kernel_options={"backend": "torch"}), wanted)


def test_a_function_is_called_twice_more_the_first_time_and_once_from_then_on() -> None:
    calls = {"n": 0}

    def scaled(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        calls["n"] += 1
        return score * 2

    x = torch.zeros(1, 1, 4, 8)
    seen = []
    for _ in range(3):
        flex_attention(x, x, x, scaled, kernel_options={"backend": "torch"})
        seen.append(calls["n"])
    assert seen == [3, 4, 5]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, of forward mode
def test_under_a_transform() -> None:
    """The states of the generators are looked at where no transform has a say."""
    x = torch.randn(1, 1, 4, 8)
    scale = lambda s, b, h, i, j: s * 2  # noqa: E731
    out, tangent = torch.func.jvp(
        lambda q: flex_attention(q, x, x, scale, kernel_options={"backend": "torch"}), (x,), (torch.ones_like(x),)
    )[:2]
    assert out.shape == tangent.shape == x.shape
