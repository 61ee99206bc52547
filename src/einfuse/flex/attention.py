"""FlexAttention's function, with torch's signature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from einfuse._spread import alone
from einfuse.flex import assemble
from einfuse.flex.assemble import Extra
from einfuse.flex.block_mask import BlockMask
from einfuse.flex.masks import ScoreFunction, sliced_mask_error
from einfuse.flex.tracer import Tracer, outside_of_graphs
from einfuse.runtime.apart import transformed
from einfuse.runtime.backends import BackendName
from einfuse.runtime.binding import host_number


class AuxRequest(NamedTuple):
    """Which row statistics a call gives out beside its output."""

    lse: bool = False
    max_scores: bool = False


class AuxOutput(NamedTuple):
    """The row statistics that were asked for, ``[B, H, Q_LEN]``; None: not asked for."""

    lse: torch.Tensor | None = None
    max_scores: torch.Tensor | None = None


@outside_of_graphs  # type: ignore[untyped-decorator]  # torch types it so
def flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: ScoreFunction | None = None,
    block_mask: BlockMask | Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: dict[str, Any] | None = None,
    *,
    return_aux: AuxRequest | Any = None,
) -> Any:
    """Attention with a modified score (FlexAttention, Dong et al., MLSys 2025): ``softmax(score_mod(q k^T scale)) v`` where the mask holds.

    ``query[B, Hq, L, E]``, ``key[B, Hkv, S, E]``, ``value[B, Hkv, S, Ev]`` of one float dtype give ``[B, Hq, L, Ev]``; with
    ``return_lse`` also the log-sum-exp of the scores, with ``return_aux`` an `AuxOutput`. ``score_mod(score, b, h, q_idx, kv_idx)`` and the
    mask's function are traced as they are at every call; captured tensors are read in place and get gradients, captured numbers
    compile nothing. ``scale`` None is 1 / sqrt(E). Of ``kernel_options``, ``backend`` ("cpu", "triton", "torch") chooses a back end; those that
    tune torch's kernels change nothing here.

    Raises SpecError with the user's line where a function cannot be traced, ValueError for shapes, TypeError for dtypes.
    """
    alone("flex_attention")
    _check(query, key, value, enable_gqa)
    if return_lse and return_aux is not None:
        raise ValueError("return_lse and return_aux are two ways to ask for the same: give one of them")
    mask = None if block_mask is None else BlockMask.of(block_mask)
    if mask is not None:
        _check_mask(mask, query, key)
    if key.shape[0] != query.shape[0]:
        key, value = (x.expand(query.shape[0], *x.shape[1:]) for x in (key, value))
    extras: tuple[Extra, ...] = ()
    if return_lse or (return_aux is not None and return_aux.lse):
        extras += ("lse",)
    if return_aux is not None and return_aux.max_scores:
        extras += ("top",)
    backend = (kernel_options or {}).get("backend")
    out, stats = _run(query, key, value, score_mod, mask, scale, extras, backend)
    if return_aux is not None:
        return out, AuxOutput(stats.get("lse"), stats.get("top"))
    return (out, stats["lse"]) if return_lse else out


def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: ScoreFunction | None,
    mask: BlockMask | None,
    scale: float | None,
    extras: tuple[Extra, ...],
    backend: BackendName | None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    sizes = dict(zip(("b", "h", "i", "j"), (*query.shape[:3], key.shape[2]), strict=True))
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    tracer = Tracer(sizes, wide, query.device)
    score = assemble.raw_score(tracer)
    if score_mod is not None:
        score = tracer.run(score_mod, score)
    condition = None if mask is None else tracer.condition(mask.function())
    attention = assemble.compiled(assemble.cascade(tracer, score, condition, extras), backend)
    tensors, numbers = assemble.arguments(tracer)
    if torch.is_grad_enabled() and not transformed() and not any(x.requires_grad for x in (query, key, value)):
        if any(x.requires_grad for x in tensors.values()):
            query = query.detach().requires_grad_()  # a backward for captured tensors alone would have no loop over the keys
    factor = 1 / math.sqrt(max(1, query.shape[-1])) if scale is None else float(_number(scale))
    result = attention(query, key, value, **tensors, scale=factor, **numbers)
    if isinstance(result, torch.Tensor):
        return result, {}
    return result[0], dict(zip(extras, result[1:], strict=True))


def _number(scale: object) -> Any:
    """Raises TypeError for a tensor whose gradient would be lost."""
    return host_number("flex_attention", "scale", scale, "multiply the score by it in score_mod, with scale=1.0")


def _check(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool) -> None:
    """Raises TypeError or ValueError where the tensors do not make an attention."""
    for name, x in (("query", query), ("key", key), ("value", value)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"flex_attention: {name} must be a tensor, found {type(x).__name__}")
        if x.is_nested:
            raise TypeError(
                f"flex_attention: {name} is a nested tensor; pack the sequences and mask by document, or call an attention made by "
                "einfuse.attention(score_mod, mask_mod), which takes jagged tensors (see also einfuse.varlen)"
            )
        if x.layout is not torch.strided:
            raise TypeError(f"flex_attention: {name} must be a dense tensor, found one of {x.layout}; call {name}.to_dense()")
        if x.dim() != 4:
            raise ValueError(f"flex_attention: {name} must be [batch, heads, length, width], found the shape {tuple(x.shape)}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"flex_attention: query and key must have one width, found {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[:3] != value.shape[:3]:
        found = f"{tuple(key.shape[:3])} and {tuple(value.shape[:3])}"
        raise ValueError(f"flex_attention: key and value must have one batch, heads and length, found {found}")
    if key.shape[0] not in (1, query.shape[0]):
        raise ValueError(f"flex_attention: the batch of key must be 1 or {query.shape[0]} as query's, found {key.shape[0]}")
    heads, shared = query.shape[1], key.shape[1]
    if heads != shared and not enable_gqa:
        raise ValueError(f"flex_attention: {heads} query heads and {shared} key heads need enable_gqa=True")
    if shared and heads % shared:
        raise ValueError(f"flex_attention: {heads} query heads are not a multiple of {shared} key heads")


def _check_mask(mask: BlockMask, query: torch.Tensor, key: torch.Tensor) -> None:
    """Raises ValueError where a mask was made for other lengths."""
    found = (query.shape[2], key.shape[2])
    if tuple(mask.seq_lengths) != found:
        raise ValueError(
            f"flex_attention: block_mask was made for {mask.seq_lengths[0]} queries and {mask.seq_lengths[1]} keys, found "
            f"{found[0]} and {found[1]}; make a new one, or crop it with block_mask._adjust({found[0]}, {found[1]})"
        )
    if mask.mask_mod is sliced_mask_error and mask._mask_mod is sliced_mask_error:
        raise ValueError("flex_attention: block_mask is a slice without a function; set its mask_mod")
