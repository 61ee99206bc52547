"""Attention plans in C++: what products in pairs and tiles of few rows do, against torch in fp64."""

import platform
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from plans import Tensors, check, softmax, softmax_backward

from einfuse.codegen import cpu
from einfuse.codegen.plan import KernelPlan, Storage

pytestmark = [pytest.mark.slow, pytest.mark.optimised]


@pytest.mark.parametrize("flags", [[], ["-mno-avx512bf16"]], ids=["machine", "portable"])
@pytest.mark.parametrize(("queries", "keys", "window"), [(37, 53, 29), (53, 37, 9), (33, 1, 1), (130, 301, 77)])
def test_pairs(queries: int, keys: int, window: int, flags: list[str], folder: Path) -> None:
    """bf16 products of an odd number of terms, of blocks that start between the rows of a pair, and without the instruction."""
    if flags and platform.machine() != "x86_64":
        pytest.skip("the option is one of x86-64")

    def run(plan: KernelPlan, tensors: Tensors, params: Mapping[str, float], sizes: Mapping[str, int]) -> None:
        cpu.build(plan, cpu.emit(plan), folder, ["-O1", *flags])(tensors, params, sizes)

    sizes = {"B": 1, "H": 2, "Hk": 1, "Nq": queries, "Nk": keys}
    check(run, softmax(storage="bf16", widths=(23, 37)), "bf16", sizes, {"window": window, "group": 2})


@pytest.mark.parametrize("storage", ["f32", "bf16"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 300), (7, 37), (16, 37), (17, 37)])
@pytest.mark.parametrize("apart", [False, True], ids=["rows", "strided"])
def test_few_queries(queries: int, keys: int, storage: Storage, apart: bool, folder: Path) -> None:
    """One tile of at most sixteen rows reads keys and values where they lie, if their features are neighbours there."""
    case = softmax(storage=storage, widths=(64, 96), tile=48, step=128)
    text = cpu.emit(case.plan)
    assert "dots(" in text
    assert "sums(" in text

    def change(t: Tensors) -> Tensors:
        return {n: x.mT.contiguous().mT if apart and n in "kv" else x for n, x in t.items()}

    def run(plan: KernelPlan, tensors: Tensors, params: Mapping[str, float], sizes: Mapping[str, int]) -> None:
        cpu.build(plan, text, folder, ["-O1"])(tensors, params, sizes)

    sizes = {"B": 1, "H": 2, "Hk": 1, "Nq": queries, "Nk": keys}
    check(run, case, storage, sizes, {"window": 250, "group": 2}, change)


def test_result_does_not_depend_on_threads(folder: Path) -> None:
    threads, found = torch.get_num_threads(), []
    case = softmax_backward()
    sizes = {**case.sizes, "Nq": 200, "Nk": 190}
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            inputs, outputs = case.tensors(sizes), case.outputs(sizes)
            cpu.build(case.plan, cpu.emit(case.plan), folder, ["-O1"])({**inputs, **outputs}, case.params, sizes)
            found.append(outputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][n], x[n]) for x in found[1:] for n in ("dk", "dv"))
