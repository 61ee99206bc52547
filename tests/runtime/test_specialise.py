"""A kernel belongs to a cascade, its dtypes, sizes and back end, and to nothing that two calls may share by accident."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

import einfuse
from einfuse.ir import Scalar
from einfuse.runtime import inside, launch
from einfuse.runtime.backends import BackendName
from einfuse.runtime.specialise import Printed
from einfuse.runtime.verify import Shape, example_inputs

Inputs = dict[str, torch.Tensor | Scalar]

SQUARE: dict[str, dict[str, Any]] = {
    "neighbourhood_2d": {"columns": 12, "window": 5},
    "swin": {"columns": 12},
    "axial": {"columns": 12},
}
"""Masks over images, which walk lists of pairs from 128 rows on."""
SUBSETS = (("q", "k", "v"), ("q",), ("k", "v"), ("q", "v"), ("v",))


def images(attention: einfuse.Attention, n: int = 144) -> Inputs:
    return example_inputs(attention.cascade, torch.float32, 0, Shape(1, 2, n, n, (8, 8), 1))


def gradients(
    attention: einfuse.Attention, inputs: Mapping[str, torch.Tensor | Scalar], wanted: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    given = {
        n: x.detach().requires_grad_(n in wanted) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for n, x in inputs.items()
    }
    out = attention(**given)
    out = out[0] if isinstance(out, tuple) else out
    leaves = [x for n in wanted if isinstance(x := given[n], torch.Tensor)]
    return dict(zip(wanted, torch.autograd.grad(out, leaves, torch.ones_like(out)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((n, "torch") for n in (*SQUARE, "taylor_shift", "causal", "retention")),
        *((n, "cpu") for n in ("neighbourhood_2d", "taylor_shift", "causal", "retention")),
    ],
)
def test_gradients_of_any_subset_are_those_of_all(name: str, backend: BackendName) -> None:
    """One attention asked for one set of gradients after another, as where layers are frozen: each is that of a fresh call for all.

    Of the masks over images, which walk lists alike, one on the CPU.
    """
    attention = einfuse.compile(name, backend=backend, **SQUARE.get(name, {}))
    inputs = images(attention)
    every = gradients(attention, inputs, SUBSETS[0])
    for wanted in (*SUBSETS[1:], SUBSETS[0]):
        for n, found in gradients(attention, inputs, wanted).items():
            torch.testing.assert_close(
                found, every[n], rtol=1e-4, atol=1e-4, msg=functools.partial("d {} for {}: {}".format, n, wanted)
            )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_head_groupings_after_one_another(dtype: torch.dtype) -> None:
    """What a backward writes depends on the grouping: a gradient in 16 bits where each head has keys, sums in 32 where heads share them."""
    attention = einfuse.compile("causal", backend="cpu")
    for heads, shared in ((4, 4), (4, 2), (4, 1), (2, 1), (2, 2), (4, 2)):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, h, 140, 16, dtype=dtype) for h in (heads, shared, shared))
        truth = gradients(attention, {n: x.double() for n, x in zip("qkv", (q, k, v), strict=True)}, ("q", "k", "v"))
        for n, found in gradients(attention, {"q": q, "k": k, "v": v}, ("q", "k", "v")).items():
            error = (found.double() - truth[n]).abs().max() / truth[n].abs().max()
            assert error < (1e-5 if dtype == torch.float32 else 2e-2), f"d {n} of {heads} heads on {shared}"


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": lambda x: x,
    "heads split off": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "channels first": lambda x: x.mT.contiguous().mT,
    "batch inside": lambda x: x.movedim(0, 2).contiguous().movedim(2, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", ["causal", "retention", "alibi"])
def test_gradients_have_the_layout_of_their_inputs(name: str, backend: BackendName) -> None:
    """As those of torch's operators: layers before an attention see the memory format that they gave. Shared heads and 16 bits too."""
    attention = einfuse.compile(name, backend=backend)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = example_inputs(attention.cascade, dtype, 0, Shape(2, 4, 24, 24, (8, 8), 2))
        truth = gradients(attention, inputs, ("q", "k", "v"))
        for layout, changed in LAYOUTS.items():
            moved = {n: changed(x) if isinstance(x, torch.Tensor) and x.ndim == 4 else x for n, x in inputs.items()}
            for n, found in gradients(attention, moved, ("q", "k", "v")).items():
                of = moved[n]
                assert isinstance(of, torch.Tensor)
                assert found.stride() == torch.empty_like(of).stride(), f"d {n}, {layout}, {dtype}"
                torch.testing.assert_close(found, truth[n], rtol=2e-2, atol=2e-2)


NAMES = ("causal", "sliding_window", "full", "alibi", "padding", "sigmoid", "entmax15", "softcap")
SHAPES = (
    Shape(1, 2, 1, 1500, (8, 8), 1),
    Shape(1, 4, 70, 300, (8, 8), 2),
    Shape(16, 8, 20, 20, (8, 8), 1),
    Shape(1, 1, 1200, 1200, (8, 8), 1),
)
CALLS: list[tuple[str, dict[str, Any], Shape]] = [
    *((name, {}, shape) for name in NAMES for shape in SHAPES),
    *((name, given, Shape(1, 2, 144, 144, (8, 8), 1)) for name, given in SQUARE.items()),
    *((name, {}, Shape(1, 2, 90, 90, (8, 8), 1)) for name in ("retention", "linformer", "gla", "lssar", "differential")),
]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_the_kernels_that_are_reported_are_those_that_run(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 pairs of a spec and a shape: one query, heads as rows, parts of the keys, short sequences, lists, scans, several kernels."""
    ran: list[str] = []
    run = launch.Launch.__call__

    def watched(
        self: launch.Launch, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Scalar], sizes: Mapping[str, int]
    ) -> bool:
        ran.append(self.built.printed.source)
        return run(self, tensors, numbers, sizes)

    monkeypatch.setattr(launch.Launch, "__call__", watched)
    for name, given, shape in CALLS:
        attention = einfuse.compile(name, backend=backend, **given)
        inputs = example_inputs(attention.cascade, torch.float32, 0, shape)
        tensors = {n: x for n, x in inputs.items() if isinstance(x, torch.Tensor)}
        numbers = {t.name: inputs.get(t.name, t.default) for t in attention.cascade.inputs if t.param}
        reported = inside.launched(attention, tensors, numbers)  # type: ignore[arg-type]  # every number has a value
        ran.clear()
        attention(**inputs)
        expected = [x.kernel.source for x in reported if isinstance(x.kernel, Printed)]
        assert ran == expected, f"{name} at {shape}"


def test_reporting_builds_nothing_and_changes_no_later_call() -> None:
    """Nor does asking for the tilings that follow if a kernel spills: each is smaller than the one before, to the last."""
    text = next(x.text for x in einfuse.list_specs() if x.name == "causal").replace(
        "attention causal", "attention causal_reported"
    )
    attention = einfuse.compile(text, backend="triton")
    tensors = {n: torch.empty(1, 2, 300, 64, dtype=torch.bfloat16, device="meta") for n in "qkv"}
    (launch_,) = inside.launched(attention, tensors, {})
    kernels = [inside.Candidate.taken(launch_)]
    while less := kernels[-1].smaller():
        kernels += less
    assert launch_.choice is not None
    assert len(kernels) == len(launch_.choice.kernel.tilings) - launch_.choice.variant.start > 2
    assert not attention.program.built
