"""Attention plans on both CPU back ends at odd sizes, with strided inputs and NaN-poisoned outputs, against torch in fp64."""

import platform

import pytest
import torch
from plans import CASES, Case, sigmoid, softmax, softmax_backward

from einfuse.codegen import cpu

pytestmark = pytest.mark.slow

BOUNDS = {"f64": 1e-12, "f32": 2e-5, "bf16": 2e-2, "f16": 3e-3}


def check(run, case: Case, storage: str = "f32", sizes=None, params=None, change=lambda t: t) -> dict[str, torch.Tensor]:
    sizes, params = {**case.sizes, **(sizes or {})}, {**case.params, **(params or {})}
    inputs, outputs = change(case.tensors(sizes)), case.outputs(sizes)
    run(case.plan, {**inputs, **outputs}, params, sizes)
    for name, expected in case.reference(inputs, params).items():
        found = outputs[name].double()
        scale = expected[expected.isfinite()].abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(found, expected, rtol=0, atol=BOUNDS[storage] * max(scale, 1.0))
    return outputs


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, run) -> None:
    check(run, CASES[name]())


@pytest.mark.parametrize(
    ("name", "storage"), [("softmax", "bf16"), ("softmax_backward", "bf16"), ("sigmoid", "f16"), ("softmax_backward", "f64")]
)
def test_storage(name: str, storage: str, run) -> None:
    check(run, CASES[name](storage=storage), storage)


@pytest.mark.parametrize(
    ("queries", "keys", "window"),
    [(1, 53, 20), (37, 37, 100), (20, 5, 3), (53, 37, 9), (32, 64, 16), (33, 1, 1), (1, 1, 1), (130, 300, 77)],
)
def test_ranges(queries: int, keys: int, window: int, run) -> None:
    """One row, whole tiles, more queries than keys (rows without keys give 0), windows below a block."""
    sizes = {"B": 1, "H": 2, "Hk": 1, "Nq": queries, "Nk": keys}
    check(run, softmax(), sizes=sizes, params={"window": window, "group": 2})


@pytest.mark.parametrize("flags", [[], ["-mno-avx512bf16"]], ids=["machine", "portable"])
@pytest.mark.parametrize(("queries", "keys", "window"), [(37, 53, 29), (53, 37, 9), (33, 1, 1), (130, 301, 77)])
def test_pairs(queries: int, keys: int, window: int, flags: list[str], folder) -> None:
    """bf16 products of an odd number of terms, of blocks that start between the rows of a pair, and without the instruction."""
    if flags and platform.machine() != "x86_64":
        pytest.skip("the option is one of x86-64")

    def run(plan, tensors, params, sizes):
        cpu.build(plan, cpu.emit(plan), folder, ["-O1", *flags])(tensors, params, sizes)

    sizes = {"B": 1, "H": 2, "Hk": 1, "Nq": queries, "Nk": keys}
    check(run, softmax(storage="bf16", widths=(23, 37)), "bf16", sizes, {"window": window, "group": 2})


@pytest.mark.parametrize("storage", ["f32", "bf16"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 300), (7, 37), (16, 37), (17, 37)])
@pytest.mark.parametrize("apart", [False, True], ids=["rows", "strided"])
def test_few_queries(queries: int, keys: int, storage: str, apart: bool, folder) -> None:
    """One tile of at most sixteen rows reads keys and values where they lie, if their features are neighbours there."""
    case = softmax(storage=storage, widths=(64, 96), tile=48, step=128)
    text = cpu.emit(case.plan)
    assert "dots(" in text
    assert "sums(" in text

    def change(t):
        return {n: x.mT.contiguous().mT if apart and n in "kv" else x for n, x in t.items()}

    def run(plan, tensors, params, sizes):
        cpu.build(plan, text, folder, ["-O1"])(tensors, params, sizes)

    sizes = {"B": 1, "H": 2, "Hk": 1, "Nq": queries, "Nk": keys}
    check(run, case, storage, sizes, {"window": 250, "group": 2}, change)


@pytest.mark.parametrize(("widths", "tile", "step"), [((1, 3), 16, 8), ((64, 64), 48, 128), ((80, 128), 48, 128)])
def test_widths(widths: tuple[int, int], tile: int, step: int, run) -> None:
    """Features below a vector, whole register tiles, and blocks larger than the problem."""
    check(run, softmax(widths=widths, tile=tile, step=step), sizes={"B": 1, "H": 2, "Hk": 1})


@pytest.mark.parametrize("factor", [1e4, -1e4])
def test_huge_scores(factor: float, run) -> None:
    def change(t):
        return {**t, "q": torch.full_like(t["q"], factor), "k": t["k"].sign() * 0.5 + 0.5}

    case = softmax()
    sizes = {"B": 1, "H": 2, "Hk": 1}
    inputs, outputs = change(case.tensors({**case.sizes, **sizes})), case.outputs({**case.sizes, **sizes})
    run(case.plan, {**inputs, **outputs}, case.params, {**case.sizes, **sizes})
    expected = case.reference(inputs, case.params)
    assert torch.isfinite(outputs["o"]).all()
    torch.testing.assert_close(outputs["m"].double(), expected["m"], rtol=1e-6, atol=0)


def test_nan_of_an_input_shows_in_its_row_only(run) -> None:
    case = sigmoid()
    inputs, outputs = case.tensors(case.sizes), case.outputs(case.sizes)
    inputs["q"][0, 0, 5] = torch.nan
    run(case.plan, {**inputs, **outputs}, case.params, case.sizes)
    assert outputs["o"][0, 0, 5].isnan().all()
    assert not outputs["o"][0, 0, 6].isnan().any()


def test_empty_batch(run) -> None:
    case = softmax()
    sizes = {**case.sizes, "B": 0}
    inputs, outputs = case.tensors(sizes), case.outputs(sizes)
    run(case.plan, {**inputs, **outputs}, case.params, sizes)
    assert outputs["o"].shape[0] == 0


def test_no_keys(run) -> None:
    case = softmax()
    sizes = {**case.sizes, "Nk": 0}
    inputs, outputs = case.tensors(sizes), case.outputs(sizes)
    run(case.plan, {**inputs, **outputs}, case.params, sizes)
    assert (outputs["o"] == 0).all()
    assert (outputs["l"] == 0).all()


def test_result_does_not_depend_on_threads(run) -> None:
    threads, found = torch.get_num_threads(), []
    case = softmax_backward()
    sizes = {**case.sizes, "Nq": 200, "Nk": 190}
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            inputs, outputs = case.tensors(sizes), case.outputs(sizes)
            run(case.plan, {**inputs, **outputs}, case.params, sizes)
            found.append(outputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][n], x[n]) for x in found[1:] for n in ("dk", "dv"))
