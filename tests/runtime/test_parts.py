"""Attention in parts: any partition of the keys, merged in any order and grouping, is the whole, with its gradients."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowed import only

import einfuse
from einfuse.runtime.parts import PartialState
from einfuse.runtime.verify import Shape, example_inputs

B, H, NQ, NK, D = 2, 2, 11, 29, 8
EXTRA = {"alibi_window": ("slope",), "sink": ("sink",)}


def arguments(
    name: str, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(B, H, n, D, generator=g, dtype=dtype).requires_grad_() for n in (NQ, NK, NK))
    return [q, k, v], {x: torch.randn(H, generator=g, dtype=dtype).requires_grad_() for x in EXTRA.get(name, ())}


def tree(attn: einfuse.Attention, states: list[PartialState], rng: random.Random) -> PartialState:
    """The states in random order, merged in random groups."""
    states = rng.sample(states, len(states))
    while len(states) > 1:
        n = rng.randint(2, len(states))
        at = rng.randint(0, len(states) - n)
        states[at : at + n] = [attn.merge(*states[at : at + n])]
    return states[0]


@pytest.mark.parametrize("name", ["causal", "alibi_window", "sigmoid", "softmax1", "sink"])
def test_any_tree_of_parts_is_the_whole(name: str) -> None:
    attn = einfuse.compile(name, backend="torch")
    args, extra = arguments(name)
    truth = attn.reference(*args, **extra, dtype=torch.float64)

    @settings(max_examples=6)
    @given(cuts=st.lists(st.integers(0, NK), max_size=4), seed=st.integers(0, 99))
    def check(cuts: list[int], seed: int) -> None:
        ends = [0, *sorted(cuts), NK]
        parts = [attn.state(*args, **extra, keys=pair) for pair in itertools.pairwise(ends)]
        out = attn.finalise(tree(attn, parts, random.Random(seed)))
        torch.testing.assert_close(out, truth, rtol=1e-11, atol=1e-11)

    check()


@pytest.mark.parametrize("name", ["context_pool", "causal", "softmax1", "cosine", "sigmoid", "alibi"])
def test_gradients_of_merged_parts_are_those_of_the_whole(name: str) -> None:
    """A correction stops the gradients that the statement stopped, wherever it says so."""
    attn = einfuse.compile(name, backend="torch")
    given = example_inputs(attn.cascade, torch.float64, 0, Shape(1, 2, 5, 13, (4, 4), 1))
    leaves = {n: x.clone().requires_grad_() for n, x in given.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    given |= leaves
    out = attn.finalise(attn.merge(*(attn.state(**given, keys=pair) for pair in ((0, 5), (5, 13)))))
    truth = attn.reference(**given, dtype=torch.float64)
    assert isinstance(out, torch.Tensor)
    assert isinstance(truth, torch.Tensor)
    torch.testing.assert_close(out, truth, rtol=1e-9, atol=1e-9)
    found, expected = (torch.autograd.grad(o.sin().sum(), list(leaves.values())) for o in (out, truth))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_gradients_flow_through_parts(backend: einfuse.runtime.backends.BackendName) -> None:
    attn = einfuse.compile("sink", backend=backend)
    args, extra = arguments("sink", torch.float32)
    halves = [attn.state(*args, **extra, keys=pair) for pair in ((0, 13), (13, 13), (13, NK))]
    leaves = [*args, *extra.values()]
    direction = torch.randn(B, H, NQ, D)
    found = torch.autograd.grad(attn.finalise(attn.merge(*halves)), leaves, direction)
    truth = torch.autograd.grad(attn.reference(*args, **extra, dtype=torch.float64), leaves, direction.double())
    for x, y in zip(found, truth, strict=True):
        torch.testing.assert_close(x, y.to(x.dtype), rtol=1e-4, atol=1e-4)


def test_low_precision_states_stay_wide() -> None:
    attn = einfuse.compile("full", backend="torch")
    q, k, v = (torch.randn(1, 2, 5, 8, dtype=torch.bfloat16) for _ in range(3))
    state = attn.state(q, k, v)
    assert {x.dtype for x in state.tensors.values()} == {torch.float32}
    assert only(attn.finalise(state)).dtype == torch.bfloat16


def test_what_cannot_be_done_is_said() -> None:
    attn = einfuse.compile("full", backend="torch")
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    with pytest.raises(ValueError, match=r"0 <= first <= last <= 5, found \(3, 6\)"):
        attn.state(q, k, v, keys=(3, 6))
    with pytest.raises(ValueError, match="merge takes one state or more"):
        attn.merge()
    with pytest.raises(ValueError, match="of the same queries"):
        attn.merge(attn.state(q, k, v), attn.state(q[:, :, :2], k, v))
