"""The attention function that models of transformers call."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from einfuse import _spread
from einfuse.integrations.compiled import check_parts, general
from einfuse.integrations.transformers.functions import Band
from einfuse.integrations.transformers.masks import MARK, Pattern, to_add
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName

Unsupported = Literal["refuse", "fallback"]
Tensors = dict[str, torch.Tensor]


class UnsupportedError(ValueError):
    """What a model asks for, einfuse does not do, and transformers' own attention does."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What was registered under a name."""

    spec: Attention | None = None
    backend: BackendName | None = None
    unsupported: Unsupported = "refuse"


def attend(
    setting: Setting,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: torch.Tensor | None = None,
    s_aux: torch.Tensor | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a model calls: q[b, h, i, d], k and v with fewer heads -> o[b, i, h, e], no weights."""
    shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    try:
        _check(module, rest)
        shown = _visible(module, attention_mask, is_causal, shape)
        tensors = shown.tensors | _documents(rest, shape, query.device)
        _select(tensors, rest.get("indices"), shape)
        if position_bias is not None:
            bias = position_bias.expand(shape)
            tensors["bias"] = tensors["bias"] + bias if "bias" in tensors else bias
        if s_aux is not None:
            tensors["sink"] = s_aux
        if dropout:
            tensors["seed"] = torch.randint(2**31, (shape[0],), device=query.device)
        if setting.spec is None:
            band = shown.band
            out = general(
                query,
                key,
                value,
                tensors,
                scale=scaling,
                causal=band.causal,
                shift=shown.shift,
                window=band.window,
                both=band.both,
                cap=softcap,
                rate=dropout,
                backend=setting.backend,
            )
        else:
            numbers = {
                "scale": scaling,
                "cap": softcap,
                "window": shown.band.window,
                "shift": shown.shift,
                "rate": dropout or None,
            }
            out = _by_spec(setting.spec, (query, key, value), tensors, numbers)
    except UnsupportedError as error:
        if setting.unsupported == "refuse" or _spread.spread():
            raise
        given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal, "softcap": softcap, "s_aux": s_aux}
        given |= {"position_bias": position_bias} | rest
        return _stock(module, query, key, value, attention_mask, {n: x for n, x in given.items() if x is not None}, error)
    return out.transpose(1, 2).contiguous(), None  # as sdpa's: models take views of it


# -- what is visible -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shown:
    """Which keys a query sees: by the distance, and by tensors."""

    band: Band
    shift: int
    tensors: Tensors


def _visible(module: torch.nn.Module, mask: torch.Tensor | None, is_causal: bool | None, shape: tuple[int, ...]) -> _Shown:
    """What a mask stands for. Raises ValueError for one that does not fit the call."""
    if mask is None:  # by the rule of transformers' sdpa: the first query stands beside the first key
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        return _Shown(Band(causal=bool(causal)) if shape[2] > 1 or _spread.spread() else Band(), 0, {})
    pattern = getattr(mask, MARK, None)
    if isinstance(pattern, Pattern) and mask.shape[2:] == shape[2:] and mask.shape[0] in (1, shape[0]):
        return _Shown(pattern.band, pattern.shift, {n: x.expand(shape[0], -1) for n, x in pattern.inputs.items()})
    try:
        whole = mask.expand(shape)  # a mask made for a cache without keys has one column, for all of them
    except RuntimeError:
        raise ValueError(f"the attention mask must broadcast to {list(shape)}, found {list(mask.shape)}") from None
    if mask.dtype != torch.bool:
        return _Shown(Band(), 0, {"bias": whole})
    if mask.shape[2] == 1 or mask.stride(2) == 0:  # every query sees the same keys
        if mask.shape[1] == 1 or mask.stride(1) == 0:
            return _Shown(Band(), 0, {"pad": whole[:, 0, 0]})
    return _Shown(Band(), 0, {"mask": whole})


def _documents(rest: Mapping[str, Any], shape: tuple[int, ...], device: torch.device) -> Tensors:
    """The documents of packed sequences, from the bounds that flash attention is given."""
    found: Tensors = {}
    for name, given, length in (("qdoc", "cu_seq_lens_q", shape[2]), ("kdoc", "cu_seq_lens_k", shape[3])):
        bounds = rest.get(given)
        if bounds is None:
            continue
        if shape[0] != 1 or bounds.ndim != 1:
            raise ValueError(f"{given} bounds sequences of a batch of one row; found a batch of {shape[0]}")
        at = torch.arange(length, device=device, dtype=bounds.dtype)
        found[name] = torch.searchsorted(bounds.to(device), at, right=True).int()[None]
    if len(found) == 1:
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k go together; found one of them")
    return found


def _select(tensors: Tensors, indices: torch.Tensor | None, shape: tuple[int, ...]) -> None:
    """Hides the keys that an indexer did not choose for a query: ``indices`` [b, i, n] of those that it did."""
    if indices is None:
        return
    chosen = torch.zeros((shape[0], shape[2], shape[3]), dtype=torch.bool, device=indices.device)
    seen = chosen.scatter(-1, indices.long(), True)[:, None].expand(shape)
    tensors["mask"] = tensors["mask"] & seen if "mask" in tensors else seen


# -- what is refused -----------------------------------------------------------------------------------------------------------------

_USUAL = {"module", "query", "key", "value", "attention_mask", "kwargs", "sliding_window"}
"""Arguments of eager attentions that say nothing that is not known otherwise: a window is in the mask."""


def _check(module: torch.nn.Module, rest: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for arguments that change what attention is, and are unknown here."""
    if rest.get("output_attentions"):
        raise UnsupportedError(
            "output_attentions: a fused kernel never holds the attention weights; use attn_implementation='eager'"
        )
    given = tuple(sorted(n for n, x in rest.items() if x is not None))
    if "block_indices" in given:
        raise ValueError(
            f"{type(module).__name__} has its attention choose keys by `block_indices`, which einfuse does not; "
            'use attn_implementation="sdpa", for which the model makes a mask of them'
        )
    unknown = _unknown(type(module), given)
    if unknown:
        raise UnsupportedError(f"{type(module).__name__} gives its attention {', '.join(unknown)}, which einfuse does not know")


def _unknown(kind: type, given: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the arguments that the eager attention of the model's file takes by name. torch.compile calls this, and does not trace it."""
    eager = _eager(kind)
    own = _parameters(eager) if eager is not None else frozenset()
    return tuple(n for n in given if n in own - _USUAL)


@functools.lru_cache(256)
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of what a function takes: every layer of every step asks for those of one."""
    return frozenset(inspect.signature(function).parameters)


vars(_unknown)["_dynamo_marked_constant"] = True  # as `torch.compiler.assume_constant_result`, which imports the compiler


def _by_spec(
    spec: Attention,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tensors: Tensors,
    numbers: Mapping[str, float | int | None],
) -> torch.Tensor:
    """A user's spec, given what it declares. Raises ValueError for something that the model needs and the spec does not take."""
    known = {t.name for t in spec.cascade.inputs} | spec.optional
    if "pad" in tensors and "pad" not in known and not bool(tensors["pad"].all()):
        raise ValueError(f"{spec.name}: the batch is padded, and the spec has no input `pad[b, j]: bool`")
    if "pad" in known and "pad" not in tensors and "pad" not in spec.optional:
        k = qkv[1]
        tensors["pad"] = torch.ones((1, 1), dtype=torch.bool, device=k.device).expand(k.shape[0], k.shape[2])
    lacking = sorted(n for n in tensors if n not in known and n != "pad")
    if lacking:
        raise ValueError(f"{spec.name}: the model gives {', '.join(lacking)}, and the spec has no such input")
    if numbers["cap"] is not None and "cap" not in known:
        raise ValueError(f"{spec.name}: the model bends its scores by a softcap, and the spec has no parameter `cap`")
    given: dict[str, Any] = {n: x for n, x in tensors.items() if n in known}
    given |= {n: x for n, x in numbers.items() if n in known and x is not None}
    if _spread.spread():
        check_parts(*qkv[:2], tensors, int(numbers["shift"] or 0))
    out = _spread.runner(spec)(*qkv, **given)
    if not isinstance(out, torch.Tensor):
        raise ValueError(f"{spec.name} has {len(out)} outputs; a model takes one")
    return out


# -- the fallback --------------------------------------------------------------------------------------------------------------------


def _stock(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    given: dict[str, Any],
    error: UnsupportedError,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' own attention: the eager one of the model, or sdpa where it has none. Warns once for each reason."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    eager = _eager(type(module))
    warn_once(f'{error}. unsupported="fallback": transformers\' own {"eager" if eager else "sdpa"} attention computes it')
    if eager is not None and mask is not None and mask.dtype == torch.bool:
        mask = to_add(mask, query.dtype)
    found: tuple[torch.Tensor, torch.Tensor | None] = (eager or sdpa_attention_forward)(
        module, query, key, value, mask, **given
    )
    return found


def _eager(kind: type) -> Callable[..., Any] | None:
    """The eager attention in the file of a module's class."""
    return getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)


_WARNED: set[str] = set()


def warn_once(message: str) -> None:
    """Warns, the first time that it is asked to say this."""
    if message not in _WARNED:
        _WARNED.add(message)
        warnings.warn(message, stacklevel=3)
