"""What a function object claims is true of its `fold`, which defines it: values in libraries, signs, limits, slopes, derivatives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from einfuse.ir import FUNCTIONS, Expr, const, load
from einfuse.ir import expr as ex
from einfuse.ir.derivative import derivative

POINTS = {"float": (0.3, 1.0, 1.75, 2.5), "int": (-7, -1, 2, 5), "bool": (False, True)}
LINE = [x / 4 + 0.01 for x in range(-24, 25)]


def rows(name: str) -> list[tuple[float, ...]]:
    """Operands at which the function is defined."""
    f = FUNCTIONS[name]
    kind = f.takes if f.takes in POINTS else "float"
    kinds = ("bool", "float", "float") if f.takes == "select" else (kind,) * f.arity
    return list(itertools.product(*(POINTS[k] for k in kinds)))


def value(name: str, *operands: float) -> float | None:
    """None where it is no real number."""
    try:
        found = FUNCTIONS[name].fold(*operands)
    except (ArithmeticError, ValueError):
        return None
    return None if isinstance(found, complex) else float(found)


def line(name: str) -> list[tuple[float, float]]:
    found = [(x, value(name, x)) for x in LINE]
    return [(x, y) for x, y in found if y is not None]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_arrays_is_that_of_numbers(name: str) -> None:
    expected = [float(FUNCTIONS[name].fold(*row)) for row in rows(name)]
    columns = list(zip(*rows(name), strict=True))
    found = FUNCTIONS[name].of(np)(*map(np.array, columns))
    np.testing.assert_allclose(np.asarray(found, float), expected, rtol=1e-12)
    tensors = [torch.tensor(c, dtype=torch.float64 if isinstance(c[0], float) else None) for c in columns]
    torch.testing.assert_close(FUNCTIONS[name].of(torch)(*tensors).double(), torch.tensor(expected).double(), rtol=1e-6, atol=0)


UNARY = [name for name, f in FUNCTIONS.items() if f.arity == 1 and f.takes in ("numeric", "any")]


@pytest.mark.parametrize("name", UNARY)
def test_its_limits_poles_and_slope_are_what_it_says(name: str) -> None:
    f, points = FUNCTIONS[name], line(name)
    assert all(f.limits[0] <= y <= f.limits[1] for _, y in points)
    assert not f.rises or [y for _, y in points] == sorted(y for _, y in points)
    assert f.rises or f.result != "float" or name == "float" or sorted(y for _, y in points) != [y for _, y in points]
    assert {x for x, _ in points} == {x for x in LINE if f.pole is None or x > f.pole}
    assert f.keeps_zero == (value(name, 0) == 0)


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if f.result != "bool" and f.takes != "select"])
def test_it_is_nonnegative_where_it_says_so(name: str) -> None:
    f = FUNCTIONS[name]
    domain = (-7, -1, 1, 2, 5) if f.takes == "int" else (-2.5, -1.0, -0.3, 0.3, 1.0, 2.5)
    for row in itertools.product(domain, repeat=f.arity):
        found = value(name, *row)
        if found is not None and f.nonnegative([x >= 0 for x in row]):
            assert found >= 0, row


DIFFERENTIABLE = [n for n, f in FUNCTIONS.items() if f.differential is not None]


def evaluated(e: Expr, at: dict[Expr, float]) -> float:
    if e in at:
        return at[e]
    return float(e.value) if e.op == "const" else float(FUNCTIONS[e.op].fold(*(evaluated(a, at) for a in e.args)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_its_differential_is_its_slope(name: str) -> None:
    f = FUNCTIONS[name]
    xs = tuple(load(f"x{n}") for n in range(f.arity))
    for row in [r for r in rows(name) if len(set(r)) == len(r)]:  # no kinks
        at = dict(zip(xs, row, strict=True))
        for x in f.values(xs):
            found = evaluated(derivative(Expr(name, xs), x), at)
            step = 1e-6
            up, down = (
                f.fold(*(float(at[z]) + s * (z == x) if z in f.values(xs) else at[z] for z in xs)) for s in (step, -step)
            )
            assert found == pytest.approx((float(up) - float(down)) / (2 * step), rel=1e-6, abs=1e-8), (row, x)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_its_differential_is_what_the_oracle_differentiates(name: str) -> None:
    """At kinks as well, where two operands are equal or one is 0: inputs in 16 bits often are."""
    f = FUNCTIONS[name]
    xs = tuple(load(f"x{n}") for n in range(f.arity))
    flags = (False, True) if f.takes == "select" else ()
    for row in itertools.product(*([flags] if flags else []), *[(-2.0, 0.0, 1.0, 2.0)] * len(f.values(xs))):
        operands = [torch.tensor(x, dtype=None if isinstance(x, bool) else torch.float64) for x in row]
        leaves = [x.requires_grad_() for x in operands if x.is_floating_point()]
        out = f.of(torch)(*operands)
        slopes = torch.autograd.grad(out, leaves, materialize_grads=True, allow_unused=True)
        for x, slope in zip(f.values(xs), slopes, strict=True):
            try:
                found = evaluated(derivative(Expr(name, xs), x), dict(zip(xs, row, strict=True)))
            except (ArithmeticError, ValueError, TypeError):  # no real number
                continue
            assert found == pytest.approx(slope.item(), nan_ok=True), (row, x)


@pytest.mark.parametrize("name", ["max", "min"])
def test_no_number_beside_a_number_is_none(name: str) -> None:
    for row in ((float("nan"), 1.0), (1.0, float("nan"))):
        assert FUNCTIONS[name].of(torch)(*map(torch.tensor, row)).isnan()


@pytest.mark.parametrize("name", [n for n, f in FUNCTIONS.items() if f.cases and n != "select"])
def test_its_cases_are_its_value(name: str) -> None:
    cases = FUNCTIONS[name].cases
    assert cases is not None
    xs = tuple(load(f"x{n}") for n in range(FUNCTIONS[name].arity))
    for row in itertools.product((-1.5, -0.5, 2.0), repeat=len(xs)):
        at = dict(zip(xs, row, strict=True))
        condition, yes, no = cases(*xs)
        assert evaluated(yes if evaluated(condition, at) else no, at) == float(FUNCTIONS[name].fold(*row))


def test_a_function_without_a_differential_has_a_derivative_of_zero() -> None:
    x = load("x")
    assert derivative(Expr("sign", (x,)), x) == ex.ZERO
    assert derivative(Expr("+", (Expr("stop", (x,)), x)), x) == const(1)
