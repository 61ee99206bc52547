"""Lowering is right, whatever a back end makes of it: specs of the library, forward and backward, by their plans in straight loops.

A third of them, the same whatever specs there are beside it: back ends print the very plans of all (tests/runtime/test_library.py).
"""

from __future__ import annotations

from zlib import crc32

import pytest

import einfuse
from einfuse.runtime.specs import library
from einfuse.runtime.verify import Shape

SPECS = [n for n in sorted(library()) if crc32(n.encode()) % 3 == 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_plans_of_the_library(name: str) -> None:
    attention = einfuse.compile(name)
    certificate = einfuse.verify(
        attention, backends=["loops"], dtypes=["float32"], seed=5, shape=Shape(1, 2, 7, 9, (8, 4), 2), brief=True
    )
    assert certificate.rows
    assert certificate.ok, [r for r in certificate.rows if not r.ok]
