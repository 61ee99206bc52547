"""The order of tiles: the largest first where one end of the loop moves with the tile."""

from __future__ import annotations

import re

import pytest

import einfuse
from einfuse.codegen.order import largest_last

ROWS = {
    "causal": True,
    "prefix": True,
    "full": False,
    "sliding_window": False,
    "padding": False,
    "document": False,
    "streaming": False,
}


@pytest.mark.parametrize("name", ROWS)
def test_the_longest_loops_of_rows_are_the_last(name: str) -> None:
    assert largest_last(einfuse.compile(name).plan("cpu")) is ROWS[name]


def test_columns_of_a_causal_mask_are_in_order_already() -> None:
    *_, columns = einfuse.compile("causal").plans("triton", backward=True)
    assert columns.tile is not None
    assert columns.tile.rank == "j"
    assert not largest_last(columns)


def test_kernels_begin_with_them() -> None:
    for backend, line in (("cpu", "tiles - 1 - item % tiles"), ("triton", "tiles - 1 - program % tiles")):
        assert line in einfuse.compile("causal").source(backend)  # type: ignore[arg-type]  # both are names of back ends
        assert not re.search(r"tiles - 1 - \w+ % tiles", einfuse.compile("full").source(backend))  # type: ignore[arg-type]
