"""Operators in libraries of their own: a module of three specs runs from a file where there is torch, and neither einfuse nor a compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from narrowed import only

import einfuse
from einfuse import export
from einfuse.ir import SpecError
from einfuse.runtime.examples import Shape, example_inputs

LOADED = """
import sys, torch
folder = sys.argv[1]
for name in ("exported_window", "exported_alibi", "exported_lse"):
    torch.ops.load_library(f"{folder}/{name}.so")
given, wanted = torch.load(f"{folder}/values.pt")
made = torch.export.load(f"{folder}/exported.pt2").module(), torch._inductor.aoti_load_package(f"{folder}/package.pt2")
with torch.no_grad():
    for found in (m(*given) for m in made):
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


def written(folder: Path) -> torch.nn.Module:
    """A module that calls three operators, whose libraries are in the folder."""
    (q, k, v), slope = tensors(), torch.rand(4)
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

    return Three()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # by torch._inductor itself
def test_a_module_of_three_specs_runs_where_there_is_neither_einfuse_nor_a_compiler(tmp_path: Path) -> None:
    module, length = written(tmp_path), torch.export.Dim("n", min=2, max=64)
    program = torch.export.export(module, (*tensors(), torch.rand(4)), dynamic_shapes=({2: length}, None, None, None))
    torch.export.save(program, tmp_path / "exported.pt2")
    quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # what wraps the operators has no loop
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "package.pt2"), inductor_configs=quick)

    q, k, v, slope = given = (*tensors(11), torch.rand(4))
    found = module(*given)
    window = only(einfuse.compile("sliding_window").reference(q, k, v, window=3))
    o, lse = einfuse.compile("lse").reference(window.float(), k, v)
    wanted = only(einfuse.compile("alibi").reference(o.float(), k, v, slope=slope))
    torch.testing.assert_close(found, (wanted.float(), lse.float()), rtol=1e-5, atol=1e-5)

    torch.save((given, found), tmp_path / "values.pt")
    command = [sys.executable, "-I", "-c", LOADED, str(tmp_path)]
    said = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=True).stdout
    assert said == "exported_window: q must be of f32, for which this operator was built\n"


@pytest.mark.slow
def test_a_mask_may_be_a_table_and_what_does_not_fit_is_named(tmp_path: Path) -> None:
    attention, (q, k, v) = einfuse.compile("padding"), tensors(70, 200)
    pad = torch.rand(1, 200, generator=torch.Generator().manual_seed(1)) < 0.5
    padded = export.operator(attention, tmp_path / "padded.so", q, k, v, pad=pad, name="exported_padding")
    found, wanted = padded(q, k, v, pad=pad), only(attention.reference(q, k, v, pad=pad))
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
    given: dict[str, Any] = {**example_inputs(attention.cascade, torch.float32, 0, Shape())}
    with pytest.raises(SpecError, match=f"{spec} cannot be an operator of its own: {reason}"):
        export.operator(attention, tmp_path / "x.so", **given)
