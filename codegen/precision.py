"""The precision of a call: decided by its tensors with features (queries, keys, values, what is scanned). Tables are read and
widened, and so are floats of 8 bits, wherever they are.

A kernel that is derived from a call, such as its backward, also reads tensors with features in accumulation precision: what an earlier
kernel saved. So of the tensors with features the narrowest decides; those that a call brings share one type (`runtime.binding.one_dtype`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from einfuse.codegen.plan import FLOAT8, Storage
from einfuse.ir import Cascade

Compute = Literal["f32", "f64"]


def precision(cascade: Cascade, storage: Mapping[str, Storage]) -> Storage:
    """The storage type of a call: that of its tensors with features; of a call without any, the widest type of its float tensors.

    ``storage`` gives the types of the input tensors; those that it leaves out play no part. "f32" for a call without float tensors.
    """
    mine = {storage[n] for n in cascade.with_features if n in storage}.difference(FLOAT8)
    order: tuple[Storage, ...] = ("bf16", "f16", "f32", "f64")
    if mine:
        return min(mine, key=order.index)
    floats = {storage[t.name] for t in cascade.inputs if t.dtype == "float" and not t.param and t.name in storage}
    floats.difference_update(FLOAT8)
    return "f32" if floats in (set(), {"bf16", "f16"}) else max(floats, key=order.index)


def accumulation(cascade: Cascade, storage: Mapping[str, Storage]) -> Compute:
    """The type in which a kernel sums: "f64" where any input tensor is, else "f32"."""
    return "f64" if any(storage.get(t.name) == "f64" for t in cascade.inputs) else "f32"
