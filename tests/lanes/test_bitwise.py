"""The same call gives the same bits, every time and on one thread or two: forward and every gradient, of every kind of kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import einfuse
from einfuse.runtime.forms import FormName
from einfuse.runtime.verify import Shape, example_inputs

pytestmark = [pytest.mark.slow, pytest.mark.optimised]

REPEATS = 20
WHOLE, SQUARE = Shape(), Shape(2, 4, 150, 150)
SPLIT = Shape(1, 1, 1, 2100, group=1)
"""One query over many keys: threads take parts of them, so that the last bits depend on how many there are (docs/performance.md)."""
MIXED = Shape(2, 2, 37, 53, (4, 8))
"""Heads that are mixed are held whole: work goes with their square."""
ONE_HEAD = Shape(1, 1, 300, 300, group=1)
"""Fewer heads than threads: those share the columns of a scan's state."""
F32, BF16 = torch.float32, torch.bfloat16

SAME_ON_TWO: list[tuple[str, torch.dtype, Shape, FormName]] = [
    ("full", F32, WHOLE, "auto"),
    ("causal", BF16, SQUARE, "auto"),
    ("gqa", F32, SQUARE, "auto"),
    ("alibi_window", torch.float16, SQUARE, "auto"),
    ("sink", F32, WHOLE, "auto"),
    ("document", F32, SQUARE, "auto"),
    ("swin", F32, SQUARE, "auto"),
    ("bias", F32, SQUARE, "auto"),
    ("t5_bias", F32, SQUARE, "auto"),
    ("shaw", BF16, WHOLE, "auto"),
    ("paged", F32, WHOLE, "auto"),
    ("random_keys", F32, SQUARE, "auto"),
    ("topk", F32, WHOLE, "auto"),
    ("talking_heads", F32, MIXED, "auto"),
    ("linear", F32, SQUARE, "auto"),
    ("gated_delta", F32, SQUARE, "auto"),
    ("ssd", BF16, SQUARE, "auto"),
    ("taylor2", F32, Shape(2, 4, 150, 150, (5, 7)), "linear"),
]
SAME_ON_AS_MANY: list[tuple[str, torch.dtype, Shape, FormName]] = [
    ("full", F32, SPLIT, "auto"),
    ("causal", F32, ONE_HEAD, "auto"),
    ("linear", F32, ONE_HEAD, "auto"),
    ("gated_delta", F32, ONE_HEAD, "auto"),
]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bits(attention: einfuse.Attention, inputs: dict[str, object]) -> list[torch.Tensor]:
    """Outputs and gradients as integers: two that are not numbers are the same where their bits are."""
    leaves = [x.requires_grad_() for x in inputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    found = attention(**inputs)  # type: ignore[arg-type]  # tensors and numbers
    outs = [*found] if isinstance(found, tuple) else [found]
    moving = [o for o in outs if o.requires_grad]
    gradients = torch.autograd.grad(moving, leaves, [torch.sin(o.detach() * 9) for o in moving], allow_unused=True)
    every = [x.detach().contiguous() for x in (*outs, *gradients) if x is not None]
    return [x.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.itemsize]) for x in every]


def repeated(case: tuple[str, torch.dtype, Shape, FormName], threads: int) -> list[torch.Tensor]:
    """The bits of a call on so many threads, which `REPEATS` calls have to give."""
    spec, dtype, shape, form = case
    torch.set_num_threads(threads)
    attention = einfuse.compile(spec, backend="cpu", form=form)
    inputs: dict[str, object] = dict(example_inputs(attention.cascade, dtype, 3, shape))
    first = bits(attention, inputs)
    for n in range(1, REPEATS):
        for place, (x, y) in enumerate(zip(first, bits(attention, inputs), strict=True)):
            assert torch.equal(x, y), f"repeat {n} on {threads} threads, result {place}: {(x != y).sum()} of {x.numel()} differ"
    return first


def name(case: tuple[str, torch.dtype, Shape, FormName]) -> str:
    return f"{case[0]}-{case[1]}-{case[2].heads}x{case[2].queries}x{case[2].keys}".replace("torch.", "")


@pytest.mark.parametrize("case", SAME_ON_TWO, ids=name)
def test_on_one_thread_and_on_two(case: tuple[str, torch.dtype, Shape, FormName]) -> None:
    one, two = repeated(case, 1), repeated(case, 2)
    assert [torch.equal(x, y) for x, y in zip(one, two, strict=True)] == [True] * len(one)


@pytest.mark.parametrize("case", SAME_ON_AS_MANY, ids=name)
def test_on_as_many_threads(case: tuple[str, torch.dtype, Shape, FormName]) -> None:
    repeated(case, 1)
    repeated(case, 2)
