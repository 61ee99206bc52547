"""The meaning in plain Python is the interpreter's, for the specs of the library."""

from __future__ import annotations

import math

import pytest
import torch

from einfuse import dsl
from einfuse.ir import interpret
from einfuse.ir.points import Points, applied
from einfuse.runtime.examples import Shape, example_inputs, example_sizes
from einfuse.runtime.specs import library

SHAPE = Shape(1, 2, 4, 5, (3, 2), 1)
ODD = ("delta", "gated_delta", "moba", "stick_breaking", "argmax_keys")  # equations, scans, choices
NAMES = [*list(library())[::24], *(n for n in ODD if n in library())]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_the_interpreter(name: str) -> None:
    path = library()[name]
    cascade = dsl.elaborate(dsl.parse(dsl.read_spec(path), path.name), search=(path.parent,))
    sizes = example_sizes(cascade, SHAPE)
    drawn = example_inputs(cascade, torch.float64, 0, SHAPE)
    wanted = interpret(cascade, drawn, sizes)
    points = Points(cascade, {n: x.tolist() if isinstance(x, torch.Tensor) else x for n, x in drawn.items()}, sizes)
    last = tuple(points.extent[r] - 1 for r in cascade.over)
    for out in cascade.outs:
        found = torch.tensor(points.output(out, last), dtype=torch.float64)
        torch.testing.assert_close(found, wanted[out][last].double(), rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(
    ("op", "args", "value"),
    [
        ("exp", (1000.0,), math.inf),
        ("log", (0.0,), -math.inf),
        ("log1p", (-1.0,), -math.inf),
        ("sqrt", (-1.0,), math.nan),
        ("/", (1.0, -0.0), -math.inf),
        ("/", (0.0, 0.0), math.nan),
        ("rsqrt", (0.0,), math.inf),
        ("^", (-2.0, 0.5), math.nan),
        ("max", (1.0, math.nan), math.nan),
    ],
)
def test_functions_are_those_of_floating_point(op: str, args: tuple[float, ...], value: float) -> None:
    assert applied(op, *args) == pytest.approx(value, nan_ok=True)
    tensors = [torch.tensor(x, dtype=torch.float64) for x in args]
    from einfuse.ir.meaning import TORCH

    assert float(TORCH[op](*tensors)) == pytest.approx(value, nan_ok=True)


def test_whole_numbers_by_0_are_refused() -> None:
    with pytest.raises(ZeroDivisionError):
        applied("//", 1, 0)
