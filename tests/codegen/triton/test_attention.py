"""Attention plans in the interpreter at odd sizes, with strided inputs and NaN-poisoned outputs, against torch in fp64."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from plans import CASES, Case, softmax

from einfuse.codegen.triton import Options, build, emit
from einfuse.dsl import compile_text
from einfuse.runtime.bound import Trial

pytestmark = pytest.mark.slow

BOUNDS = {"f64": 1e-12, "f32": 2e-5, "bf16": 2e-2, "f16": 3e-3}


def check(
    case: Case,
    directory: Path,
    storage: str = "f32",
    sizes: Mapping[str, int] | None = None,
    params: Mapping[str, int | float] | None = None,
    options: Options | None = None,
) -> None:
    sizes, params = {**case.sizes, **(sizes or {})}, {**case.params, **(params or {})}
    inputs, outputs = case.tensors(sizes), case.outputs(sizes)
    build(case.plan, emit(case.plan, options or Options()), directory)({**inputs, **outputs}, params, sizes)
    for name, expected in case.reference(inputs, params).items():
        found = outputs[name].double()
        scale = expected[expected.isfinite()].abs().max().item() if expected.numel() else 1.0
        torch.testing.assert_close(found, expected, rtol=0, atol=BOUNDS[storage] * max(scale, 1.0))


@pytest.mark.parametrize("storage", ["bf16", "f64"])
@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, storage: str, tmp_path: Path) -> None:
    check(CASES[name](storage=storage), tmp_path, storage)


def test_half_precision(tmp_path: Path) -> None:
    check(softmax("f16"), tmp_path, "f16")


@pytest.mark.parametrize(
    ("widths", "tile", "step"), [((3, 5), 32, 16), ((16, 130), 16, 32), ((24, 24), 4, 16), ((24, 24), 16, 8)]
)
def test_blocks(widths: tuple[int, int], tile: int, step: int, tmp_path: Path) -> None:
    """Widths below 16 and just above a power of two; tiles below 16 are widened, products over steps below 16 become sums."""
    check(softmax(widths=widths, tile=tile, step=step), tmp_path, sizes={"B": 1, "H": 2, "Hk": 1})


@pytest.mark.parametrize("name", ["softmax", "tabulated"])
def test_descending_tiles(name: str, tmp_path: Path) -> None:
    check(CASES[name](), tmp_path, options=Options(descending=True))


@pytest.mark.parametrize("fn", ["softplus", "tanh", "erf"])
def test_other_weights(fn: str, tmp_path: Path) -> None:
    check(CASES["sigmoid"](fn=fn), tmp_path, sizes={"B": 1, "H": 1})


def test_bf16_error_is_that_of_the_format(tmp_path: Path) -> None:
    """What `einfuse verify` allows for the attention that the plan is written for."""
    case = softmax("bf16", widths=(32, 32))
    inputs, outputs = case.tensors(case.sizes), case.outputs(case.sizes)
    build(case.plan, emit(case.plan), tmp_path)({**inputs, **outputs}, case.params, case.sizes)
    spec = compile_text("""attention windowed(window: int, scale: float) over b, h {
      rank i: query; rank j: key; rank d, e: feature
      in q[b, h, i, d]; in k[b, h // group, j, d]; in v[b, h // group, j, e]
      s = scale * sum[d](q * k) where j <= i + Nk - Nq and i + Nk - Nq - j < window
      o[i, e] = sum[j](softmax[j](s) * v)
      out o
    }""")
    trial = Trial(spec, {**inputs, **{n: case.params[n] for n in ("window", "scale")}}, torch.bfloat16, gradients=False)
    torch.testing.assert_close(trial.truth["out 0"], case.reference(inputs, case.params)["o"])
    assert trial.compared("out 0", outputs["o"]).ok
