"""flash-attn's three functions, for its own attention and for any spec.

    from einfuse.integrations.flash_attn import flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache
    mine = einfuse.integrations.flash_attn.of("sliding_window", causal=True)        # the same functions of a spec
    mine.flash_attn_with_kvcache(q, k_cache, v_cache, block_table=table, cache_seqlens=lengths, causal=True, window=256)

Reference for the meaning of every argument: the documentation of flash-attn 2. Where queries are fewer than keys, the last query stands beside
the last key; a row that sees no key gives 0. Of a spec, rows are the last tokens where keys come from a cache; else coordinates are the spec's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from einfuse._spread import alone
from einfuse.integrations.planned import Plans
from einfuse.ir import Scalar
from einfuse.runtime.attention import Attention
from einfuse.runtime.compile import compile
from einfuse.runtime.packed import varlen
from einfuse.serving import Cache

SPEC = Path(__file__).with_name("flash.attn")
Given = dict[str, torch.Tensor | Scalar]


@dataclass(frozen=True, slots=True)
class Options:
    """What calls say of the attention."""

    softmax_scale: float | None = None
    causal: bool = False
    window_size: tuple[int, int] = (-1, -1)
    softcap: float = 0.0
    alibi_slopes: torch.Tensor | None = None


Picked = Callable[[Options, torch.Tensor, Mapping[str, Any]], tuple[Attention, Given]]
"""The attention of a call and what it takes beside queries, keys and values, by the options, the queries and whatever else was given."""


@dataclass(frozen=True, eq=False)
class FlashAttention:
    """The three functions of one attention. Made by `of`; those of flash-attn's own attention are the functions of this module."""

    pick: Picked
    _plans: Plans = field(default_factory=Plans, repr=False)

    def flash_attn_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        **more: Any,
    ) -> torch.Tensor:
        """q: [B, Nq, H, D], k: [B, Nk, Hk, D], v: [B, Nk, Hk, E] -> [B, Nq, H, E]. Differentiable."""
        _refuse("flash_attn_func", dropout_p=dropout_p, return_attn_probs=return_attn_probs)
        attention, given = self.pick(Options(softmax_scale, causal, window_size, softcap, alibi_slopes), q, more)
        out = attention(*(x.transpose(1, 2) for x in (q, k, v)), **given)
        return _one(attention, out).transpose(1, 2).contiguous()

    def flash_attn_varlen_func(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int | None = None,
        max_seqlen_k: int | None = None,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        alibi_slopes: torch.Tensor | None = None,
        deterministic: bool = False,
        return_attn_probs: bool = False,
        block_table: torch.Tensor | None = None,
        **more: Any,
    ) -> torch.Tensor:
        """q: [T, H, D], k: [Tk, Hk, D], v: [Tk, Hk, E] -> [T, H, E], of sequences in a row; differentiable.

        With ``block_table`` [B, table], k and v are pages [pages, P, Hk, D] of a cache; nothing is differentiated.
        """
        _refuse("flash_attn_varlen_func", dropout_p=dropout_p, return_attn_probs=return_attn_probs)
        options = Options(softmax_scale, causal, window_size, softcap, _of_each(alibi_slopes, len(cu_seqlens_q) - 1))
        attention, given = self.pick(options, q, more)
        if block_table is not None:
            return self._cached(attention, given, q, (k, v), block_table, cu_seqlens_q, cu_seqlens_k.diff())
        return _one(attention, varlen(attention, q, k, v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, **given))

    def flash_attn_with_kvcache(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        k: torch.Tensor | None = None,
        v: torch.Tensor | None = None,
        rotary_cos: torch.Tensor | None = None,
        rotary_sin: torch.Tensor | None = None,
        cache_seqlens: int | torch.Tensor | None = None,
        cache_batch_idx: torch.Tensor | None = None,
        cache_leftpad: torch.Tensor | None = None,
        block_table: torch.Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
        window_size: tuple[int, int] = (-1, -1),
        softcap: float = 0.0,
        rotary_interleaved: bool = True,
        alibi_slopes: torch.Tensor | None = None,
        num_splits: int = 0,
        return_softmax_lse: bool = False,
        **more: Any,
    ) -> torch.Tensor:
        """q: [B, Nq, H, D] -> [B, Nq, H, E], the last queries of each sequence; nothing is differentiated.

        k_cache, v_cache: [caches, N, Hk, D], by ``cache_batch_idx`` [B], or with ``block_table`` [B, table] pages [pages, P, Hk, D]. The
        first ``cache_seqlens`` tokens of a sequence are there; those of ``k`` and ``v`` [B, new, Hk, D] are written behind them first.
        """
        _refuse(
            "flash_attn_with_kvcache",
            rotary_cos=rotary_cos,
            rotary_sin=rotary_sin,
            cache_leftpad=cache_leftpad,
            return_softmax_lse=return_softmax_lse,
        )
        batch, rows = q.shape[:2]
        attention, given = self.pick(
            Options(softmax_scale, causal, window_size, softcap, _of_each(alibi_slopes, batch)), q[0], more
        )
        if block_table is None:  # a cache of a sequence is one page
            block_table = torch.arange(batch, device=q.device) if cache_batch_idx is None else cache_batch_idx
            block_table = block_table[:, None]
        elif cache_batch_idx is not None:
            raise ValueError(
                "flash_attn_with_kvcache: block_table says where a sequence is, and so does cache_batch_idx; give one"
            )
        known = k_cache.shape[1] * block_table.shape[1] if cache_seqlens is None else cache_seqlens
        length = torch.as_tensor(known, device=q.device).expand(batch)
        if (k is None) != (v is None):
            raise ValueError("flash_attn_with_kvcache: k and v go together; found one of them")
        if k is not None and v is not None:
            new = k.shape[1]
            length = length + new
            at = torch.arange(batch + 1, device=q.device) * new
            Cache({"k": k_cache, "v": v_cache}, block_table, length).append(at, k=k.flatten(0, 1), v=v.flatten(0, 1))
        starts = torch.arange(batch + 1, device=q.device) * rows
        out = self._cached(attention, given, q.flatten(0, 1), (k_cache, v_cache), block_table, starts, length)
        return out.view(batch, rows, *out.shape[1:])

    def _cached(
        self,
        attention: Attention,
        given: Given,
        q: torch.Tensor,
        pages: tuple[torch.Tensor, torch.Tensor],
        table: torch.Tensor,
        starts: torch.Tensor,
        length: torch.Tensor,
    ) -> torch.Tensor:
        """The rows of sequences whose keys are in pages, by a plan for calls of these shapes."""
        names = [t.name for t in attention.cascade.inputs if not t.param][:3]
        return _one(
            attention, self._plans(attention, given | dict(zip(names, (q, *pages), strict=True)), table, starts, length)
        )


def of(spec: str | Attention, **fixed: object) -> FlashAttention:
    """flash-attn's functions of a spec (a name of the library, a path, a text, or what was compiled).

    What else the spec takes is given to a call by its name, numbers and tensors. ``fixed`` says with which of flash-attn's own options, such as
    ``causal=True``, the spec may be called: it says itself what is visible, and other values are refused.
    """
    attention = spec if isinstance(spec, Attention) else compile(spec)
    unknown = fixed.keys() - set(Options.__slots__)
    if unknown:
        raise TypeError(f"flash_attn.of: {min(unknown)} is no option of flash-attn's functions")
    allowed = Options(**fixed)  # type: ignore[arg-type]  # as they are given

    def pick(options: Options, q: torch.Tensor, more: Mapping[str, Any]) -> tuple[Attention, Given]:
        for n in Options.__slots__:
            asked = getattr(options, n)
            if asked not in (getattr(allowed, n), getattr(Options(), n)):
                raise ValueError(
                    f"flash_attn: {attention.name} says itself what {n} would; found {n}={asked} (flash_attn.of(.., {n}=..) takes it)"
                )
        return attention.variant(more)

    return FlashAttention(pick)


@functools.cache
def _compiled(behind: bool, ahead: bool, capped: bool) -> Attention:
    return compile(SPEC, behind=behind, ahead=ahead, capped=capped)


def own(options: Options, q: torch.Tensor, more: Mapping[str, Any]) -> tuple[Attention, Given]:
    """flash-attn's own attention, and what it takes beside queries, keys and values [.., heads, D]."""
    if more:
        raise TypeError(f"flash_attn has no argument {min(more)}")
    left, right = options.window_size
    right = 0 if options.causal else right
    attention = _compiled(left >= 0, right >= 0, options.softcap > 0)
    scale = options.softmax_scale
    given: Given = {"scale": max(1, q.shape[-1]) ** -0.5 if scale is None else scale}
    wanted: Given = {"left": left, "right": right, "cap": options.softcap}
    given |= {t.name: wanted[t.name] for t in attention.cascade.inputs if t.name in wanted}
    if options.alibi_slopes is None:
        return attention, given
    slopes = _of_each(options.alibi_slopes, q.shape[0])
    return attention.variant({**given, "slope": slopes})


def _of_each(slopes: torch.Tensor | None, batch: int) -> torch.Tensor | None:
    """Slopes of every sequence; given for all, they are a view."""
    return slopes if slopes is None or slopes.ndim == 2 else slopes.expand(batch, -1)


def _one(attention: Attention, out: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    if isinstance(out, torch.Tensor):
        return out
    if len(out) == 1:
        return out[0]
    raise ValueError(f"flash_attn: {attention.name} has {len(out)} outputs, and flash-attn's functions return one")


def _refuse(function: str, **given: object) -> None:
    """Raises ValueError for what no kernel here does."""
    alone(function)
    for name, value in given.items():
        if isinstance(value, torch.Tensor) or value:
            found = "a tensor" if isinstance(value, torch.Tensor) else value
            raise ValueError(f"{function}: {name} is not supported by einfuse's kernels; found {found}")


_general = FlashAttention(own)
flash_attn_func = _general.flash_attn_func
flash_attn_varlen_func = _general.flash_attn_varlen_func
flash_attn_with_kvcache = _general.flash_attn_with_kvcache
