"""The functions on numpy arrays are those on Python's numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from einfuse.ir import FUNCTIONS
from einfuse.ir.arrays import NUMPY

POINTS = {"float": (0.3, 1.0, 1.75, 2.5), "int": (-7, -1, 2, 5), "bool": (False, True)}


def test_every_function_is_there() -> None:
    assert NUMPY.keys() == FUNCTIONS.keys()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_arrays_is_that_of_numbers(name: str) -> None:
    f = FUNCTIONS[name]
    kind = f.takes if f.takes in POINTS else "float"
    kinds = ("bool", "float", "float") if f.takes == "select" else (kind,) * f.arity
    rows = list(itertools.product(*(POINTS[k] for k in kinds)))
    found = NUMPY[name](*map(np.array, zip(*rows, strict=True)))
    np.testing.assert_allclose(np.asarray(found, float), [float(f.fold(*row)) for row in rows], rtol=1e-12)
