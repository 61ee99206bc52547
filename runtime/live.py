"""How much of its space an attention visits: the live tiles of its forward kernels, and the same attention without its masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from einfuse.codegen import Storage
from einfuse.ir import Einsum, Fold, Scalar, pipeline
from einfuse.runtime import binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import choose
from einfuse.runtime.launch import fold_tiles
from einfuse.runtime.program import static_sizes, tilings
from einfuse.runtime.scan import ScanProgram


def without_masks(attention: Attention) -> Attention | None:
    """The attention in which every point exists; None where that is so already."""
    body = tuple(replace(x, mask=None) if isinstance(x, Einsum) else x for x in attention.cascade.body)
    if body == attention.cascade.body:
        return None
    whole = replace(attention.cascade, name=f"{attention.name}_whole", body=body)
    return Attention(whole, attention.backend, attention.strict)


def live_share(attention: Attention, inputs: Mapping[str, torch.Tensor | Scalar]) -> float:
    """The share of tiles that the forward kernels of a call with these arguments have to visit, all folds together.

    Tiles are those of the back end that the call would take; a tile counts where the analysis of its mask does not prove it empty.
    """
    if isinstance(attention.program, ScanProgram):
        return 1.0  # a scan visits every block
    tensors, numbers = binding.arguments(attention.cascade, (), inputs)
    sizes: Mapping[str, int] = binding.sizes(attention.cascade, tensors)  # type: ignore[assignment]  # concrete in a real call
    first = next(iter(tensors.values()))
    backend = choose(first.device, attention.backend)
    dtype = next((x.dtype for x in tensors.values() if x.is_floating_point()), torch.float32)
    live, every = 0.0, 0
    for stage in attention.stages or (attention,):
        storage: dict[str, Storage] = {t.name: binding.STORAGE[dtype] for t in stage.cascade.inputs if t.dtype == "float"}
        static = static_sizes(stage.cascade, sizes)
        block, step = tilings(stage.cascade, storage, static, backend, False)[0]
        scheduled = pipeline.run(stage.cascade, block, step, attention.strict)
        for fold in (x for x in scheduled.body if isinstance(x, Fold) and scheduled.tile):
            found = fold_tiles(scheduled, fold, tensors, numbers, sizes)
            tiles = found.kind.shape[-2] * found.kind.shape[-1]
            live, every = live + found.live_fraction * tiles, every + tiles
    return live / every if every else 1.0
