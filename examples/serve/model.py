"""`Model`: a decoder of transformers whose attention reads pages. One call computes rows of any number of sequences.

The model runs as it is: its attention function is replaced, by the name `NAME`, by one that writes the layer's new keys and values to their
pages and runs a plan. Layers with a sliding window have a plan of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

import einfuse
from einfuse import serving

NAME = "serve_pages"


@dataclass(frozen=True, slots=True)
class Capacity:
    """``pages`` of ``width`` tokens for ``batch`` sequences of up to ``table`` pages, and up to ``rows`` rows in a step."""

    pages: int
    width: int = 16
    table: int = 64
    batch: int = 8
    rows: int = 128

    @property
    def room(self) -> int:
        """How many tokens a sequence may have."""
        return min(self.pages, self.table) * self.width


@dataclass(eq=False)
class Model:
    """A model, and the pages of all its layers. `cache` has the tables: who gives out pages writes ``cache.page`` and ``cache.length``.

    ``prefixes``: pages that several sequences begin with are read once for all of them, by launches that every step has.
    """

    net: Any
    capacity: Capacity
    prefixes: bool = False
    cache: serving.Cache = field(init=False)
    layers: list[serving.Cache] = field(init=False)
    _plans: dict[int | None, serving.Plan] = field(default_factory=dict, init=False)
    _places: tuple[torch.Tensor, torch.Tensor] | None = field(default=None, init=False)
    _starts: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        AttentionInterface.register(NAME, _attend)
        AttentionMaskInterface.register(NAME, _no_mask)
        self.net.set_attn_implementation(NAME)
        config, c = self.net.config, self.capacity
        shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token: Any = {"k": (shared, width), "v": (shared, width)}
        sizes: Any = {"pages": c.pages, "width": c.width, "table": c.table, "batch": c.batch, "dtype": self.net.dtype}
        first, *more = (
            serving.Cache.empty(einfuse.compile("causal"), **sizes, **token) for _ in range(config.num_hidden_layers)
        )
        self.cache, self.layers = first, [first, *(replace(first, tensors=x.tensors) for x in more)]

    @torch.no_grad()
    def __call__(
        self, tokens: Sequence[int], positions: Sequence[int], starts: Sequence[int], wanted: Sequence[int]
    ) -> torch.Tensor:
        """The logits [wanted, vocabulary] of the wanted rows. Sequence b of the cache has the rows ``starts[b]`` to ``starts[b + 1] - 1``."""
        self._starts = torch.tensor(starts, dtype=torch.int32)
        self._places = self.cache.places(self._starts, len(tokens))
        for plan in self._plans.values():
            plan.update(self._starts)
        ids, at, kept = torch.tensor([tokens]), torch.tensor([positions]), torch.tensor(wanted, dtype=torch.long)
        logits: torch.Tensor = self.net(input_ids=ids, position_ids=at, use_cache=False, logits_to_keep=kept, pages=self).logits
        return logits[0]

    def attention(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
        """A layer's attention of the rows q [T, H, D], whose keys and values it writes first -> [T, H, D]."""
        cache = self.layers[layer]
        assert self._places is not None, "attention runs within a call of the model"
        cache.write(self._places, k=k, v=v)
        plan = self._plans.get(window)
        if plan is None:
            plan = self._plans[window] = self._planned(q, window)
            plan.update(self._starts)
        out = plan.run(q, **cache.tensors)
        assert isinstance(out, torch.Tensor), "these specs have one output"
        return out

    def copy(self, page: int, to: int) -> None:
        """Copies a page in all layers."""
        for layer in self.layers:
            layer.copy(page, to)

    def _planned(self, q: torch.Tensor, window: int | None) -> serving.Plan:
        rows = torch.empty(self.capacity.rows, *q.shape[1:], dtype=q.dtype)
        if window is None:
            return serving.plan(einfuse.compile("causal"), self.cache, q=rows, prefixes=self.prefixes)
        return serving.plan(einfuse.compile("sliding_window"), self.cache, q=rows, window=window, prefixes=self.prefixes)


def _attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: None, **kwargs: Any
) -> Any:
    """The attention of one layer, as transformers calls it: heads [1, H, T, D] -> [1, T, H, D]."""
    model: Model = kwargs["pages"]
    unknown = [n for n in ("softcap", "s_aux", "position_bias") if kwargs.get(n) is not None]
    if unknown:
        raise ValueError(f"this server has no attention with {unknown[0]}: give `Model` a spec that takes it")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    usual, scale = 1 / math.sqrt(q.shape[-1]), kwargs.get("scaling")
    if scale is not None and not math.isclose(scale, usual):
        q = q * (scale / usual)
    return model.attention(module.layer_idx, q, k, v, kwargs.get("sliding_window"))[None], None  # type: ignore[arg-type]  # an int


def _no_mask(*_: Any, **__: Any) -> None:
    """Plans know which keys a row sees."""
