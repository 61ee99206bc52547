"""Blocks that Hopper's copy engine brings: which tensors, and when a launch takes the kernel with pointers instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import einfuse
from einfuse.codegen.triton import Options, build, emit
from einfuse.runtime.inside import Candidate


def kernel(spec: str, target: str = "sm_90", dtype: torch.dtype = torch.bfloat16) -> Candidate:
    return einfuse.compile(spec).candidates("triton", dtype, False, {}, target)[0]  # type: ignore[arg-type]


def taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changed: torch.Tensor) -> str:
    """The kernel that a launch of causal attention takes: 40 tokens of 2 x 2 heads, 64 features."""
    found = kernel("causal")
    module = build(found.plan, found.source, tmp_path).module  # type: ignore[arg-type]  # no scan
    tensors = {n: torch.empty(2, 2, 40, 64, dtype=torch.bfloat16, device="meta") for n in "qkvo"} | changed
    launched: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            return lambda *args, **named: launched.append(self.name)

    for name in ("causal", "causal_described"):
        monkeypatch.setattr(module, name, Recorder(name))
    module.launch(tensors, {}, {"B": 2, "H": 2, "Nk": 40, "Nq": 40, "group": 1})
    return {"causal": "pointers", "causal_described": "descriptors"}[launched[0]]


def test_loops_compute_no_addresses() -> None:
    text = kernel("causal").source
    fast = text[text.index("def causal_described") : text.index("def _describable")]
    assert re.findall(r"(\w)_desc\.load\(\[b, t, j_lo, 0\]\)", fast) == ["k", "v", "k", "v"]
    assert "_ptr" not in fast
    assert "mask=" not in fast


def test_a_launch_with_plain_tensors_takes_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert taken(tmp_path, monkeypatch) == "descriptors"


@pytest.mark.parametrize(
    "strides",
    [(2 * 40 * 65, 40 * 65, 65, 1), (2 * 40 * 128, 40 * 128, 128, 2), (0, 40 * 64, 64, 1)],
    ids=["of 130 bytes", "between features", "of 0"],
)
def test_hazard_23_other_strides_take_pointers(
    strides: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k = torch.empty_strided((2, 2, 40, 64), strides, dtype=torch.bfloat16, device="meta")
    assert taken(tmp_path, monkeypatch, k=k) == "pointers"


def test_hazard_23_a_base_of_no_16_bytes_takes_pointers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of a larger tensor, as a projection of queries, keys and values together gives it."""
    k = torch.empty(2 * 2 * 40 * 64 + 1, dtype=torch.bfloat16)[1:].view(2, 2, 40, 64)
    assert taken(tmp_path, monkeypatch, k=k) == "pointers"


def test_a_tensor_longer_than_its_rank_takes_pointers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine knows the bounds of the tensor, not those of the rank."""
    assert taken(tmp_path, monkeypatch, k=torch.empty(2, 2, 48, 64, dtype=torch.bfloat16, device="meta")) == "pointers"


@pytest.mark.parametrize(("target", "dtype"), [("sm_80", torch.bfloat16), ("gfx942", torch.bfloat16), ("sm_90", torch.float32)])
def test_other_gpus_and_fp32_have_pointers_alone(target: str, dtype: torch.dtype) -> None:
    assert "TensorDescriptor" not in kernel("causal", target, dtype).source


def test_what_is_read_at_computed_places_keeps_its_pointers() -> None:
    assert "k_desc" not in kernel("paged").source


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 40])
def test_both_kernels_compute_the_same(width: int, tmp_path: Path) -> None:
    """150 keys end inside a block, 40 features inside a padded one."""
    torch.manual_seed(0)
    attention = einfuse.compile("causal")
    found = attention.candidates("triton", torch.bfloat16, False, {"D": width, "E": width}, "sm_90")[0]
    tensors = {n: torch.randn(1, 2, 150, width, dtype=torch.bfloat16) for n in "qkv"}
    sizes = {"B": 1, "H": 2, "Nk": 150, "Nq": 150, "group": 1}
    outs = []
    for descriptors in (False, True):
        text = emit(found.plan, Options(descriptors=descriptors))  # type: ignore[arg-type]  # no scan
        assert ("_desc.load" in text) == descriptors
        out = torch.full((1, 2, 150, width), torch.nan, dtype=torch.bfloat16)
        build(found.plan, text, tmp_path)({**tensors, "o": out}, {}, sizes)  # type: ignore[arg-type]
        outs.append(out)
    assert torch.equal(*outs)
