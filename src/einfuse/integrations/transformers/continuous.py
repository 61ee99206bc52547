"""Continuous batching of transformers with keys read where they lie: no gather of all keys, and the dense mask is not looked at.

    with einfuse.integrations.transformers.continuous(model):
        model.generate_batch(prompts, ...)

Continuous batching takes attention functions of few names, so within the block ``sdpa`` is einfuse. Its cache writes new keys and then
copies all keys of a step into a row; here it writes them, and the attention reads them by their slots (pages of one token). Layers with a
sliding window keep a ring that is overwritten while it is read: these stay as they are.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from einfuse.integrations.flash_attn import Options, own
from einfuse.integrations.planned import Plans, room

SLOTS = "einfuse_slots"
"""The argument by which the cache tells the attention of a layer where keys are."""


@dataclass(slots=True)
class Slots:
    """The keys and values of a layer, and where those of each sequence are: ``read`` lists the tokens of all of them in a row."""

    keys: torch.Tensor
    values: torch.Tensor
    read: torch.Tensor


@dataclass(slots=True)
class Tables:
    """The slots of a step as a table [B, tokens], made once for all its layers."""

    of: Callable[[], torch.Tensor | None] = field(default=lambda: None)
    table: torch.Tensor | None = None

    def __call__(self, read: torch.Tensor, ends: torch.Tensor, longest: int) -> torch.Tensor:
        if self.table is None or self.of() is not read:
            at = ends[:-1, None] + torch.arange(longest, device=read.device)
            self.of, self.table = weakref.ref(read), read[at.clamp_(0, max(len(read) - 1, 0))]
        return self.table


@contextlib.contextmanager
def continuous(model: torch.nn.Module) -> Iterator[None]:
    """Within the block, continuous batching of ``model`` runs on einfuse's kernels; its attention must be ``sdpa`` (the default).

    The block holds for the process: other models with ``sdpa`` that run meanwhile in continuous batching do so too, and plain calls are
    transformers' own. Raises ValueError for another attention, and where a layer asks for what these kernels do not know (sinks, position
    biases).
    """
    from transformers.generation.continuous_batching.cache import PagedAttentionCache
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = getattr(model.config, "_attn_implementation", None)
    if name != "sdpa":
        raise ValueError(f'continuous batching on einfuse takes the place of "sdpa"; found attn_implementation={name!r}')
    stock, update = ALL_ATTENTION_FUNCTIONS["sdpa"], PagedAttentionCache.update
    plans, tables = Plans(), Tables()

    def written(cache: Any, key: torch.Tensor, value: torch.Tensor, layer: int, kwargs: dict[str, Any]) -> Any:
        allocator = cache.layer_to_allocator[layer]
        if kwargs.get("block_table") is not None or allocator.layer_type != "full_attention":
            return update(cache, key, value, layer, kwargs)
        kwargs["cu_seq_lens_k"] = kwargs["cu_seq_lens_k"][allocator.layer_type].to(torch.int32)
        kwargs["max_length_k"] = kwargs["max_length_k"][allocator.layer_type]
        write, read = (kwargs[n][allocator.index] for n in ("write_index", "read_index"))
        views = allocator._kv_token_views
        keys, values = views[layer]
        keys.index_copy_(0, write, key[0].transpose(0, 1))
        values.index_copy_(0, write, value[0].transpose(0, 1))
        whole = min(len(x) for pair in views.values() for x in pair)  # one shape for all layers
        kwargs[SLOTS] = Slots(keys[:whole], values[:whole], read if read.numel() else write)
        return key, value

    def attend(module: torch.nn.Module, query: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        slots: Slots | None = kwargs.pop(SLOTS, None)
        if slots is None:
            return stock(module, query, *args, **kwargs)
        return _attention(plans, tables, slots, query, kwargs), None

    ours, theirs = torch.compiler.disable(written), dict(ALL_ATTENTION_FUNCTIONS._local_mapping)
    with mock.patch.object(PagedAttentionCache, "update", ours):
        ALL_ATTENTION_FUNCTIONS["sdpa"] = torch.compiler.disable(attend)
        try:
            yield
        finally:
            ALL_ATTENTION_FUNCTIONS._local_mapping.pop("sdpa")
            ALL_ATTENTION_FUNCTIONS._local_mapping.update(theirs)


def _attention(plans: Plans, tables: Tables, slots: Slots, query: torch.Tensor, kwargs: dict[str, Any]) -> torch.Tensor:
    """The attention of the rows [1, H, T, D] of a step -> [1, T, H, E]."""
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"continuous batching on einfuse: the model's attention has {name}, which its kernels do not know")
    q = query[0].transpose(0, 1)
    ends, starts = kwargs["cu_seq_lens_k"], kwargs["cu_seq_lens_q"]
    table = tables(slots.read, ends, kwargs["max_length_k"])
    options = Options(kwargs.get("scaling"), causal=True, softcap=kwargs.get("softcap") or 0.0)
    attention, given = own(options, q, {})
    batch = room(len(ends) - 1)
    fill = batch - len(ends) + 1
    if fill:  # sequences without rows or tokens
        table = torch.cat((table, table.new_zeros(fill, table.shape[1])))
        starts = torch.cat((starts, starts[-1:].expand(fill)))
        ends = torch.cat((ends, ends[-1:].expand(fill)))
    tensors = {"q": q, "k": slots.keys[:, None], "v": slots.values[:, None]}
    (out,) = plans(attention, given | tensors, table, starts, ends.diff())
    return out[None]
