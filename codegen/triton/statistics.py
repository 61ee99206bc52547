"""`measure`: what a compiler makes of a generated kernel for a GPU that need not be there: registers, spills, shared memory.

Nothing is launched. Triton must be imported without its interpreter (``TRITON_INTERPRET`` unset).
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from einfuse.codegen.plan import Arg, KernelPlan
from einfuse.codegen.triton.build import build
from einfuse.codegen.triton.names import identifier
from einfuse.codegen.triton.options import SHARED, GpuTarget, Precision, launch_options

TARGETS: dict[GpuTarget, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx942": ("hip", "gfx942", 64),
}
POINTERS = {
    "f64": "*fp64",
    "f32": "*fp32",
    "bf16": "*bf16",
    "f16": "*fp16",
    "i64": "*i64",
    "i32": "*i32",
    "i16": "*i16",
    "i8": "*i8",
    "u8": "*u8",
    "bool": "*u8",
}


@dataclass(frozen=True, slots=True)
class Statistics:
    """A compiled kernel. ``spills`` counts the instructions (NVIDIA) or vector registers (AMD) that spill to memory,
    ``scalar_spills`` the scalar registers that AMD keeps in lanes of vector ones; ``matrix`` is the kind of matrix instruction
    found: "wgmma", "mma", "mfma" or "".
    """

    target: GpuTarget
    registers: int
    spills: int
    scalar_spills: int
    shared: int
    warps: int
    stages: int
    matrix: str

    @property
    def fits(self) -> bool:
        return self.shared <= SHARED[self.target]


def measure(
    plan: KernelPlan, source: str, target: GpuTarget, directory: Path, precision: Precision = "ieee", **options: int
) -> Statistics:
    """Compile the text that `emit` made for ``target`` with `launch_options`, which ``options`` override.

    Assumes what a call with ordinary tensors lets Triton know: pointers and outer strides divisible by 16, last strides of 1.
    """
    triton, backends, compiler = map(_module, ("triton", "triton.backends.compiler", "triton.compiler"))
    function: Any = getattr(build(plan, source, directory).module, identifier(plan.name))
    assert isinstance(function, triton.JITFunction), "the statistics need Triton without its interpreter"
    chosen = options if {"num_warps", "num_stages"} <= options.keys() else launch_options(plan, target, precision) | options
    signature, constants, divisible = _signature(plan, source, function.arg_names)
    attributes = {(n,): [["tt.divisibility", 16]] for n in divisible}
    compiled: Any = triton.compile(
        compiler.ASTSource(function, signature, constants, attributes),
        target=backends.GPUTarget(*TARGETS[target]),
        options={**chosen, "enable_fp_fusion": True},
    )
    read = _amd if target.startswith("gfx") else _nvidia
    registers, spills, scalar_spills, matrix = read(compiled)
    return Statistics(
        target, registers, spills, scalar_spills, compiled.metadata.shared, chosen["num_warps"], chosen["num_stages"], matrix
    )


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _signature(plan: KernelPlan, source: str, names: list[str]) -> tuple[dict[str, str], dict[str, int], list[int]]:
    """The kernel's argument types, its constants, and the positions of the arguments that are divisible by 16."""
    tensors: dict[str, Arg] = {f"{identifier(t.name)}_ptr": t for t in plan.tensors}
    strides = {f"{identifier(t.name)}_s{n}": (t, n) for t in plan.tensors for n in range(t.axes)}
    params = {prefix + identifier(name): dtype for name, dtype in plan.params for prefix in ("", "param_")}
    blocks = {name: int(value) for name, value in re.findall(r"(BLOCK_\w+)=(\d+)", source)}
    signature: dict[str, str] = {}
    constants: dict[str, int] = {}
    divisible = []
    for n, name in enumerate(names):
        last = name in strides and strides[name][1] == strides[name][0].axes - 1
        if name in blocks or last:
            signature[name], constants[name] = "constexpr", blocks.get(name, 1)
        elif name in tensors:
            signature[name] = POINTERS[tensors[name].storage]
        elif name.endswith("_ptr"):
            signature[name] = "*fp64" if name[: -len("_ptr")] in params else "*i32"
        else:
            signature[name] = "fp32" if params.get(name) == "float" else "i32"
        if name.endswith("_ptr") or (name in strides and strides[name][0].axes > 1 and not last):
            divisible.append(n)
    return signature, constants, divisible


def _nvidia(compiled: Any) -> tuple[int, int, int, str]:
    """Registers from the resource usage of the cubin, spills as the loads and stores of local memory in its machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, code = (_cuobjdump(flag, file.name) for flag in ("-res-usage", "-sass"))
    found = re.search(r"REG:(\d+)", usage)
    assert found is not None, f"cuobjdump names no registers: {usage}"
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    ptx = compiled.asm["ptx"]
    return int(found[1]), spills, 0, "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else ""


def _cuobjdump(flag: str, path: str) -> str:
    program = Path(_module("triton").__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([program, flag, path], capture_output=True, text=True, check=True).stdout


def _amd(compiled: Any) -> tuple[int, int, int, str]:
    """Registers and spilled registers from the metadata of the assembly."""
    asm = compiled.asm["amdgcn"]
    fields = {k: int(v) for k, v in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s*(\d+)", asm)}
    matrix = "mfma" if "v_mfma" in asm else ""
    return fields["vgpr_count"], fields["vgpr_spill_count"], fields["sgpr_spill_count"], matrix
