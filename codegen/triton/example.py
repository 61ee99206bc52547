"""`example`: arguments for a kernel of which only the plan is known, as ordinary calls bring them; no memory is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.codegen.plan import Arg, KernelPlan, Storage, table_ranks

if TYPE_CHECKING:
    import torch

LENGTH = 1031
"""A size of which a compiler learns nothing: it has no divisors."""


def example(plan: KernelPlan) -> tuple[dict[str, torch.Tensor], dict[str, int | float], dict[str, int]]:
    """Tensors (on the meta device), host numbers and sizes: outer strides are divisible by 16, sizes by nothing."""
    import torch

    kinds: dict[Storage, torch.dtype] = {
        "f64": torch.float64,
        "f32": torch.float32,
        "bf16": torch.bfloat16,
        "f16": torch.float16,
        "e4m3": torch.float8_e4m3fn,
        "e5m2": torch.float8_e5m2,
        "i64": torch.int64,
        "i32": torch.int32,
        "i16": torch.int16,
        "i8": torch.int8,
        "u8": torch.uint8,
        "bool": torch.bool,
    }

    def tensor(t: Arg) -> torch.Tensor:
        strides = [1 if axis == t.axes - 1 else 16 << (t.axes - axis) for axis in range(t.axes)]
        return torch.empty_strided([LENGTH] * t.axes, strides, dtype=kinds[t.storage], device="meta")

    tensors = {t.name: tensor(t) for t in plan.tensors}
    for rank in table_ranks(plan) if isinstance(plan, KernelPlan) else ():
        tensors |= {f"{rank}_{t}": tensor(Arg(t, 2, "i32")) for t in ("count", "block")}
    params = {n: LENGTH if dtype == "int" else 0.5 if dtype == "float" else True for n, dtype in plan.params}
    return tensors, params, dict.fromkeys(plan.sizes, LENGTH)
