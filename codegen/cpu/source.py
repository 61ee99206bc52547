"""`emit`: a plan as one C++20 file that needs the standard library and OpenMP."""

from __future__ import annotations

import re

from einfuse.codegen.cpu.keep import keep
from einfuse.codegen.cpu.kernel import KernelPrinter, paired
from einfuse.codegen.cpu.names import HEADERS
from einfuse.codegen.cpu.places import by_place
from einfuse.codegen.exponentials import powers
from einfuse.codegen.plan import FLOAT8, KernelPlan, PlanPass, finished, prune, table_ranks

PASSES = (PlanPass("places", by_place), PlanPass("keep", keep), PlanPass("powers", powers), PlanPass("prune", prune))
"""What becomes of a plan before it is printed."""

_INCLUDES = "#include <cstdint>\n#include <cstdlib>\n#include <cstring>\n"


def emit(plan: KernelPlan, keeps: bool = True) -> str:
    """The text: what is computed, the headers it uses, and ``einfuse_kernel``. ``keeps``: scores that several loops read are kept."""
    plan = finished(plan, [p for p in PASSES if keeps or p.run is not keep])
    lines = KernelPrinter(plan).printed()
    headers = [
        "vector",
        "hash",
        "vmath",
        f"vmath_{plan.compute}",
        "memory",
        *(["float8", "float8_lanes"] if any(t.storage in FLOAT8 for t in plan.tensors) else []),
        *(["pairs"] if paired(plan) else []),
        "matmul",
        "alive",
        "stream",
        "runtime",
    ]
    most = sum("scratch.take<" in line for line in lines)
    parts = [
        _title(plan),
        _INCLUDES + "#if defined(__linux__)\n#include <sys/mman.h>\n#endif\n",
        _types(plan) + f"constexpr int MOST_BUFFERS = {max(1, most)};\n",
        "\n".join(HEADERS[h].read_text() for h in headers),
        _arguments(plan),
        'extern "C" int einfuse_kernel(void** ptrs, const int64_t* strides, const int64_t* sizes, const double* params, int threads) {\n'
        + re.sub(r"\n{3,}", "\n\n", "\n".join(lines))
        + "\n}\n",
    ]
    return "\n".join(parts)


def _title(plan: KernelPlan) -> str:
    text = plan.equations.strip().splitlines()
    return "\n".join([f"// {plan.name}", "//", *(f"//   {line}".rstrip() for line in text)]) + "\n"


def _types(plan: KernelPlan) -> str:
    real, whole = ("double", "int64_t") if plan.compute == "f64" else ("float", "int32_t")
    return (
        f"using T = {real};  // accumulation\nusing I = {whole};  // integers and truth values in vectors\n"
        'constexpr T INF = __builtin_inff(), NOT_A_NUMBER = __builtin_nanf("");\n'
    )


def _arguments(plan: KernelPlan) -> str:
    tables = [f"{r}_{k}" for r in table_ranks(plan) for k in ("count", "block")]
    tensors = [t.name for t in plan.tensors]
    shape = [f"shape of {t.name} ({t.axes})" for t in plan.tensors if t.axes]
    longest = [f"longest list of {r}_block" for r in table_ranks(plan)]
    return "\n".join(
        [
            "// Arguments, in order. Returns 0, or 1 if there was not enough memory.",
            f"//   ptrs     {', '.join(tensors + tables)}",
            f"//   strides  in elements, of every axis of {', '.join(tensors)}",
            f"//   sizes    {', '.join([*plan.sizes, *shape, *longest])}",
            f"//   params   {', '.join(n for n, _ in plan.params) or 'none'}",
        ]
    )
