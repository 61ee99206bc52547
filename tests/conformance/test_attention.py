"""Attention plans on every back end at odd sizes, with strided inputs and NaN-poisoned outputs, against torch in fp64."""

import pytest
import torch
from plans import CASES, Runner, Tensors, check, sigmoid, softmax

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, run: Runner) -> None:
    check(run, CASES[name]())


@pytest.mark.parametrize(
    ("name", "storage"), [("softmax", "bf16"), ("softmax_backward", "bf16"), ("sigmoid", "f16"), ("softmax_backward", "f64")]
)
def test_storage(name: str, storage: str, run: Runner) -> None:
    check(run, CASES[name](storage=storage), storage)


@pytest.mark.parametrize(
    ("queries", "keys", "window"),
    [(1, 53, 20), (37, 37, 100), (20, 5, 3), (53, 37, 9), (32, 64, 16), (33, 1, 1), (1, 1, 1), (130, 300, 77)],
)
def test_ranges(queries: int, keys: int, window: int, run: Runner) -> None:
    """One row, whole tiles, more queries than keys (rows without keys give 0), windows below a block."""
    sizes = {"B": 1, "H": 2, "Hk": 1, "Nq": queries, "Nk": keys}
    check(run, softmax(), sizes=sizes, params={"window": window, "group": 2})


@pytest.mark.parametrize(("widths", "tile", "step"), [((1, 3), 16, 8), ((64, 64), 48, 128), ((80, 128), 48, 128)])
def test_widths(widths: tuple[int, int], tile: int, step: int, run: Runner) -> None:
    """Features below a vector, whole register tiles, and blocks larger than the problem."""
    check(run, softmax(widths=widths, tile=tile, step=step), sizes={"B": 1, "H": 2, "Hk": 1})


@pytest.mark.parametrize("factor", [1e4, -1e4])
def test_huge_scores(factor: float, run: Runner) -> None:
    def change(t: Tensors) -> Tensors:
        return {**t, "q": torch.full_like(t["q"], factor), "k": t["k"].sign() * 0.5 + 0.5}

    case = softmax()
    sizes = {"B": 1, "H": 2, "Hk": 1}
    inputs, outputs = change(case.tensors({**case.sizes, **sizes})), case.outputs({**case.sizes, **sizes})
    run(case.plan, {**inputs, **outputs}, case.params, {**case.sizes, **sizes})
    expected = case.reference(inputs, case.params)
    assert torch.isfinite(outputs["o"]).all()
    torch.testing.assert_close(outputs["m"].double(), expected["m"], rtol=1e-6, atol=0)


def test_nan_of_an_input_shows_in_its_row_only(run: Runner) -> None:
    case = sigmoid()
    inputs, outputs = case.tensors(case.sizes), case.outputs(case.sizes)
    inputs["q"][0, 0, 5] = torch.nan
    run(case.plan, {**inputs, **outputs}, case.params, case.sizes)
    assert outputs["o"][0, 0, 5].isnan().all()
    assert not outputs["o"][0, 0, 6].isnan().any()


def test_empty_batch(run: Runner) -> None:
    case = softmax()
    sizes = {**case.sizes, "B": 0}
    inputs, outputs = case.tensors(sizes), case.outputs(sizes)
    run(case.plan, {**inputs, **outputs}, case.params, sizes)
    assert outputs["o"].shape[0] == 0


def test_no_keys(run: Runner) -> None:
    case = softmax()
    sizes = {**case.sizes, "Nk": 0}
    inputs, outputs = case.tensors(sizes), case.outputs(sizes)
    run(case.plan, {**inputs, **outputs}, case.params, sizes)
    assert (outputs["o"] == 0).all()
    assert (outputs["l"] == 0).all()
