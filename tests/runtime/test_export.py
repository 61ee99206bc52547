"""Operators in libraries of their own: a module of three specs runs from a file where there is torch, and neither einfuse nor a compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import einfuse
from einfuse import export
from einfuse.ir import SpecError
from einfuse.runtime.examples import Shape, example_inputs

LOADED = """
import sys, torch
folder, package = sys.argv[1:]
for name in ("exported_window", "exported_alibi", "exported_lse"):
    torch.ops.load_library(f"{folder}/{name}.so")
given, wanted = torch.load(f"{folder}/values.pt")
made = torch.export.load(package).module() if package.endswith("m.pt2") else torch._inductor.aoti_load_package(package)
with torch.no_grad():
    found = made(*given)
assert all(map(torch.equal, found, wanted)), [(x - y).abs().max() for x, y in zip(found, wanted)]
assert not [m for m in sys.modules if m.partition(".")[0] == "einfuse"]
try:
    torch.ops.einfuse_spec.exported_window(*(x.double() for x in given[:3]))
except RuntimeError as error:
    print(error)
"""


def tensors(queries: int = 5, keys: int = 9) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    shapes = (1, 4, queries, 16), (1, 2, keys, 16), (1, 2, keys, 16)
    return tuple(torch.randn(s, generator=g) for s in shapes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A folder with three libraries, and a module that calls their operators."""
    folder, (q, k, v), slope = tmp_path_factory.mktemp("libraries"), tensors(), torch.rand(4)
    options: Any = {"exported_window": {"window": 3}, "exported_alibi": {"slope": slope}, "exported_lse": {}}
    specs = {"exported_window": "sliding_window", "exported_alibi": "alibi", "exported_lse": "lse"}
    each = {
        n: export.operator(einfuse.compile(spec), folder / f"{n}.so", q, k, v, name=n, **options[n])
        for n, spec in specs.items()
    }

    class Three(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> Any:
            o, lse = each["exported_lse"](each["exported_window"](q, k, v, window=3), k, v)
            return each["exported_alibi"](o, k, v, slope=slope), lse

    return folder, Three()


def exported(module: torch.nn.Module) -> torch.export.ExportedProgram:
    n = torch.export.Dim("n", min=2, max=64)
    given = (*tensors(), torch.rand(4))
    return torch.export.export(module, given, dynamic_shapes=({2: n}, None, None, None))


def elsewhere(folder: Path, module: torch.nn.Module, package: Path) -> str:
    """What a process without einfuse and without a compiler prints."""
    given = (*tensors(11), torch.rand(4))
    torch.save((given, module(*given)), folder / "values.pt")
    command = [sys.executable, "-I", "-c", LOADED, str(folder), str(package)]
    return subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=True).stdout


def test_a_module_of_three_specs_runs_where_there_is_no_einfuse(made: tuple[Path, torch.nn.Module]) -> None:
    folder, module = made
    torch.export.save(exported(module), folder / "m.pt2")
    assert (
        elsewhere(folder, module, folder / "m.pt2") == "exported_window: q must be of f32, for which this operator was built\n"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # by torch._inductor itself
def test_a_package_of_aotinductor_too(made: tuple[Path, torch.nn.Module]) -> None:
    folder, module = made
    torch._inductor.aoti_compile_and_package(exported(module), package_path=str(folder / "aoti.pt2"))
    elsewhere(folder, module, folder / "aoti.pt2")


def test_a_mask_may_be_a_table_and_what_does_not_fit_is_named(tmp_path: Path) -> None:
    attention, (q, k, v) = einfuse.compile("padding"), tensors(70, 200)
    pad = torch.rand(1, 200, generator=torch.Generator().manual_seed(1)) < 0.5
    padded = export.operator(attention, tmp_path / "padded.so", q, k, v, pad=pad, name="exported_padding")
    found, wanted = padded(q, k, v, pad=pad), attention.reference(q, k, v, pad=pad)
    torch.testing.assert_close(found, wanted.float(), rtol=1e-5, atol=1e-5)

    wrong: dict[str, tuple[torch.Tensor, ...]] = {
        "axis 2 of v is Nk = 8, found 200": (q, k[:, :, :8], v, pad[:, :8]),
        "axis 1 of k is H // group: 3 must be a multiple of it, found 2": (q[:, :3], k, v, pad),
        "q must be of f32, for which this operator was built": (q.bfloat16(), k.bfloat16(), v.bfloat16(), pad),
        "this operator was built for D = 16, found 8": (q[..., :8], k[..., :8], v, pad),
        r"q has 4 axes, found the shape \[4, 70, 16\]": (q[0], k, v, pad),
    }
    for reason, given in wrong.items():
        with pytest.raises(RuntimeError, match=f"exported_padding: {reason}"):
            torch.ops.einfuse_spec.exported_padding(*given)
    with pytest.raises(TypeError, match="the operator exported_padding has no backward"):
        padded(q.requires_grad_(), k, v, pad=pad)
    with pytest.raises(ValueError, match="an operator needs a name of its own that is an identifier, found exported_padding"):
        export.operator(attention, tmp_path / "x.so", q, k, v, pad=pad, name="exported_padding")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("linformer", "it takes several kernels"),
        ("delta", "it takes several kernels"),
        ("moba", "it chooses what it reads"),
        ("paged", "whether what it reads is there has to be looked at before a call"),
    ],
)
def test_what_is_more_than_a_kernel_is_refused(spec: str, reason: str, tmp_path: Path) -> None:
    attention = einfuse.compile(spec)
    given = example_inputs(attention.cascade, torch.float32, 0, Shape())
    with pytest.raises(SpecError, match=f"{spec} cannot be an operator of its own: {reason}"):
        export.operator(attention, tmp_path / "x.so", **given)
