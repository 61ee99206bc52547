"""`measure`: what a compiler makes of a generated kernel for a GPU that need not be there: registers, spills, shared memory, loops.

Nothing is launched. Triton must be imported without its interpreter (``TRITON_INTERPRET`` unset).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from einfuse.codegen.plan import KernelPlan
from einfuse.codegen.targets import TARGETS, Target
from einfuse.codegen.triton.build import build
from einfuse.codegen.triton.example import example
from einfuse.codegen.triton.machine_code import Loop, MachineCode
from einfuse.codegen.triton.names import identifier
from einfuse.codegen.triton.options import Precision, launch_options
from einfuse.codegen.triton.signature import Signature


@dataclass(frozen=True, slots=True)
class Iteration:
    """One iteration of a loop with matrix products: instructions of a thread by kind (`machine_code.KINDS`), and its wgmma by the width of
    their results and whether their left operand comes from shared memory."""

    counts: dict[str, int]
    wgmma: tuple[tuple[int, bool, int], ...] = ()

    @property
    def instructions(self) -> int:
        return sum(self.counts.values())

    @staticmethod
    def of(loop: Loop) -> Iteration:
        kinds = [(i.columns, i.from_shared) for i in loop.body if i.columns]
        return Iteration(dict(loop.counts), tuple((*k, kinds.count(k)) for k in sorted(set(kinds))))


@dataclass(frozen=True, slots=True)
class Statistics:
    """A compiled kernel. ``spills`` counts the instructions (NVIDIA) or vector registers (AMD) that spill to memory,
    ``scalar_spills`` the scalar registers that AMD keeps in lanes of vector ones; ``matrix`` is the kind of matrix instruction
    found: "wgmma", "tcgen05", "mma", "mfma" or "". Of NVIDIA alone: whether the assembler ``serialised`` the wgmma, its ``warnings`` by
    number, and the ``loops`` with matrix products, in the order of the text.
    """

    target: Target
    registers: int
    spills: int
    scalar_spills: int
    shared: int
    warps: int
    stages: int
    matrix: str
    programs: int = 0
    serialised: bool = False
    warnings: tuple[str, ...] = ()
    loops: tuple[Iteration, ...] = ()

    @property
    def fits(self) -> bool:
        return self.shared <= TARGETS[self.target].shared


def measure(
    plan: KernelPlan, source: str, target: Target, directory: Path, precision: Precision = "ieee", **options: int
) -> Statistics:
    """Compile the text that `emit` made for ``target`` with `launch_options`, which ``options`` override.

    Assumes what a call with ordinary tensors lets Triton know: pointers and outer strides divisible by 16, last strides of 1.
    """
    kernel = build(plan, source, directory)
    chosen = options if {"num_warps", "num_stages"} <= options.keys() else launch_options(plan, target, precision) | options
    tensors, params, sizes = example(plan)
    found = Signature.of(kernel.module, identifier(plan.name), tensors, params, sizes, chosen)
    assert found is not None, "an example has programs"
    return compiled(found, target)


def compiled(launch: Signature, target: Target) -> Statistics:
    """Compile a kernel as this launch of it would."""
    triton, backends, compiler = map(_module, ("triton", "triton.backends.compiler", "triton.compiler"))
    assert isinstance(launch.function, triton.JITFunction), "the statistics need Triton without its interpreter"
    attributes = {(n,): [["tt.divisibility", 16]] for n in launch.divisible}
    log = io.StringIO()
    with triton.knobs.compilation.scope(), triton.knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        triton.knobs.compilation.always_compile = triton.knobs.nvidia.dump_ptxas_log = True
        made: Any = triton.compile(
            compiler.ASTSource(launch.function, launch.types, launch.constants, attributes),
            target=backends.GPUTarget(*TARGETS[target].triton),
            options=launch.options,
        )
    read = _amd if TARGETS[target].amd else _nvidia
    return read(made, target, launch, tuple(sorted(set(re.findall(r"\bC7\d\d\d\b", log.getvalue())))))


_MATRIX = {"wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma", "mma": "mma.sync"}
"""Kinds of matrix instruction by how PTX names them."""


def _module(name: str) -> Any:
    return importlib.import_module(name)


def _nvidia(made: Any, target: Target, launch: Signature, warnings: tuple[str, ...]) -> Statistics:
    code, ptx = MachineCode.of(made.asm["cubin"]), made.asm["ptx"]
    return Statistics(
        target,
        code.registers,
        code.spills,
        0,
        made.metadata.shared,
        made.metadata.num_warps,
        made.metadata.num_stages,
        next((name for name, op in _MATRIX.items() if op in ptx), ""),
        launch.programs,
        code.serialised and bool(warnings),  # a product of one instruction is waited for without being broken up
        warnings,
        tuple(map(Iteration.of, code.loops)),
    )


def _amd(made: Any, target: Target, launch: Signature, warnings: tuple[str, ...]) -> Statistics:
    """Registers and spilled registers from the metadata of the assembly."""
    asm = made.asm["amdgcn"]
    fields = {k: int(v) for k, v in re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s*(\d+)", asm)}
    return Statistics(
        target,
        fields["vgpr_count"],
        fields["vgpr_spill_count"],
        fields["sgpr_spill_count"],
        made.metadata.shared,
        made.metadata.num_warps,
        made.metadata.num_stages,
        "mfma" if "v_mfma" in asm else "",
        launch.programs,
    )
