"""Many devices are one device: outputs and every gradient, in float64, of drawn specs, masks and layouts, over every exchange there is.

The devices are threads (`devices.py`), what they run locally is the interpreter. All that is left to real processes is that bytes arrive.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from devices import SCANS, Derived, parts, whole, whole_and_parts
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import einfuse
from einfuse.distributed import programs, schedule
from einfuse.distributed.here import Axis
from einfuse.ir import Cascade
from einfuse.runtime.attention import Attention
from einfuse.runtime.examples import Shape, example_inputs, example_sizes
from einfuse.testing import selections, specs

EXACT = 1e-12


@pytest.fixture(autouse=True, scope="module")
def _two_pieces() -> Iterator[None]:
    """What would arrive at once arrives in two pieces: sequences are too short for more to pay."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "PIECES", (2,))
        yield


def sharded_ranks(c: Cascade) -> tuple[str, ...]:
    """The ranks of queries and keys along which inputs lie."""
    own = [r for r in c.ranks if r.kind in ("query", "key") and r.extent is None and isinstance(r.size, str)]
    return tuple(r.name for r in own if r.name not in c.over)


def layout(draw: st.DrawFn, total: int, devices: int, mixed: bool) -> list[torch.Tensor]:
    """Rows of a sequence for so many devices, some perhaps without any: one after the other, or in any order."""
    found = parts(total, draw(st.lists(st.integers(0, total), min_size=devices - 1, max_size=devices - 1)))
    order = torch.tensor(draw(st.permutations(range(total)))) if mixed else torch.arange(total)
    return [order[rows].sort().values for rows in found]


@functools.lru_cache(maxsize=64)
def possible(text: str) -> tuple[Attention, tuple[tuple[str, Axis], ...], Derived]:
    """An attention, the exchanges that it may take, and what devices derive of it: more than half of the texts are drawn again."""
    attention = einfuse.compile(text)
    c = attention.cascade
    ranks = sharded_ranks(c)
    every = [(e, Axis("seq", ranks if e != "states" else ("j",))) for e in programs.EXCHANGES]
    return attention, tuple((e, axis) for e, axis in every if programs.obstacle(c, axis, e) is None), Derived()


def check(draw: st.DrawFn, text: str, devices: int) -> None:
    """Every exchange that the attention may take, with rows one after the other or in any order; that of columns with both."""
    attention, exchanges, kept = possible(text)
    c = attention.cascade
    queries, keys = draw(st.tuples(st.integers(1, 7), st.integers(1, 9)))
    shapes = [Shape(1, 4, queries, n, (2, 3), 2) for n in (keys, queries)]  # mixed rows are as many as columns
    given = [example_inputs(c, torch.float64, 0, shape) for shape in shapes]
    known = [whole(c, x) for x in given]
    for exchange, axis in exchanges:
        for mixed in (False, True) if exchange == "columns" else (draw(st.booleans()),):
            sizes = example_sizes(c, shapes[mixed])
            held = layout(draw, queries, devices, mixed)
            rows = {
                str(c.rank(r).size): held if mixed else layout(draw, sizes[str(c.rank(r).size)], devices, False)
                for r in axis.ranks
            }
            error = whole_and_parts(attention, (axis,), exchange, given[mixed], rows, mixed, kept, known[mixed])
            assert error <= EXACT, (exchange, rows)


@settings(max_examples=52, phases=(Phase.generate,))
@given(st.data(), specs(), st.integers(2, 5))
def test_a_drawn_attention(data: st.DataObject, text: str, devices: int) -> None:
    check(data.draw, text, devices)  # type: ignore[arg-type]


@settings(max_examples=10, phases=(Phase.generate,))
@given(st.data(), selections(), st.integers(2, 3))
def test_a_drawn_attention_that_chooses(data: st.DataObject, text: str, devices: int) -> None:
    check(data.draw, text, devices)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCANS)
def test_a_scan_hands_on_its_states(name: str) -> None:
    """Over three devices, and where the first and one in the middle have no points."""
    attention, kept = einfuse.compile(name), Derived()
    inputs = example_inputs(attention.cascade, torch.float64, 0, Shape(1, 2, 9, 9, (4, 2), 2))
    known = whole(attention.cascade, inputs)
    for cuts in ((3, 4), (0, 5, 5)):
        rows = {str(attention.cascade.rank("i").size): parts(9, cuts)}
        assert whole_and_parts(attention, (Axis("seq", ("i",)),), "prefix", inputs, rows, False, kept, known) <= EXACT, cuts
