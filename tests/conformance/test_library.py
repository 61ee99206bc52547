"""Lowering is right, whatever a back end makes of it: every spec of the library, forward and backward, by its plans in straight loops."""

from __future__ import annotations

import pytest

import einfuse
from einfuse.runtime.verify import Shape

SPECS = sorted(x.name for x in einfuse.list_specs())


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_plans_of_the_library(name: str) -> None:
    attention = einfuse.compile(name)
    certificate = einfuse.verify(
        attention, backends=["loops"], dtypes=["float32"], seed=5, shape=Shape(1, 2, 7, 9, (8, 4), 2), brief=True
    )
    assert certificate.rows
    assert certificate.ok, [r for r in certificate.rows if not r.ok]
