"""Which kernel a cascade becomes on a back end, for the dtypes of its tensors and the sizes of its features: its tilings, its plan, its key."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from einfuse.codegen import KernelPlan, Storage, lower
from einfuse.ir import Cascade
from einfuse.runtime import derived
from einfuse.runtime.backends import Backend, Tilings
from einfuse.runtime.binding import STORAGE


def tilings(
    cascade: Cascade, storage: Mapping[str, Storage], static: Mapping[str, int], backend: Backend, backward: bool
) -> Tilings:
    """The tiles and steps of a cascade on a back end, the best first."""
    widths = [r.size if isinstance(r.size, int) else static[r.size] for r in cascade.ranks if r.kind == "feature"]
    floats = [storage[t.name] for t in cascade.inputs if t.dtype == "float" and not t.param]
    narrow = next((s for s in floats if s in ("bf16", "f16")), floats[0] if floats else "f32")
    return backend.tilings(narrow, max(widths, default=1), backward)


def tiled(
    cascade: Cascade,
    storage: Mapping[str, Storage],
    static: Mapping[str, int],
    backend: Backend,
    ladder: Tilings,
    strict: bool,
    small: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Cascade, KernelPlan, Tilings]:
    """The scheduled cascade and its plan at the first of the tilings that the back end says can be held, and the tilings after it.

    ``small`` gives the most that sizes which are not known are at every launch.
    """
    (block, step), rest = ladder[0], ladder[1:]
    scheduled = derived.scheduled(cascade, block, step, strict)
    plan = backend.prepared(lower(scheduled, storage, static), small)
    if rest and not backend.holds(plan):
        return tiled(cascade, storage, static, backend, rest, strict, small)
    return scheduled, plan, rest


def static_sizes(cascade: Cascade, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes that are part of a kernel's text: those of its features."""
    return {r.size: sizes[r.size] for r in cascade.ranks if r.kind == "feature" and isinstance(r.size, str)}


def kernel_key(
    cascade: Cascade, storage: Mapping[str, Storage], static: Mapping[str, int], backend: Backend
) -> tuple[object, ...]:
    return (cascade.name, cascade.outs, tuple(sorted(storage.items())), tuple(sorted(static.items())), backend.name)


def storage_of(cascade: Cascade, tensors: Mapping[str, torch.Tensor]) -> dict[str, Storage]:
    names = [t.name for t in cascade.inputs if not t.param] + list(cascade.outs)
    return {n: STORAGE[tensors[n].dtype] for n in names}
