"""Models of Hugging Face transformers on einfuse, by its own registries of attention and mask functions (transformers 5).

    einfuse.integrations.transformers.register("einfuse")
    model = AutoModel.from_pretrained(folder, attn_implementation="einfuse")

Causal and sliding-window masks with padding stay formulas inside the kernel; any other mask (packed sequences, image blocks, chunks)
is handed over as the booleans that transformers makes of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from einfuse.integrations.compiled import general
from einfuse.runtime import Attention
from einfuse.runtime import compile as compile_spec
from einfuse.runtime.backends import BackendName

_NAMES: set[str] = set()
"""What was registered."""


@dataclass(frozen=True, slots=True, eq=False)
class Pattern:
    """What a mask stands for: causality, counted from the end, maybe a window, and keys [b, j] that are ``real``."""

    window: int | None
    real: torch.Tensor


MARK = "_einfuse_pattern"
"""The attribute of a mask tensor that holds its `Pattern`."""


def register(name: str = "einfuse", spec: str | Attention | None = None, *, backend: BackendName | None = None) -> None:
    """Makes ``attn_implementation=name`` mean einfuse.

    Without a ``spec``, everything a stock model asks for is computed: padding, causal and windowed masks, grouped heads, scale, softcap,
    sinks, position bias. A ``spec`` (an attention, or what `einfuse.compile` takes) replaces the mechanism: it is given q, k, v and those
    of pad, mask, bias, sink, scale, cap, window that it declares, and has to write its own causality. A call that needs something else
    raises ValueError, as do dropout and the wish for attention weights. A model that computes attention by its own code (Bloom, MPNet) raises
    ValueError where the name is chosen for it.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if isinstance(spec, str):
        spec = compile_spec(spec, backend=backend)
    AttentionInterface.register(name, functools.partial(_forward, spec, backend))
    AttentionMaskInterface.register(name, _mask)
    if not _NAMES:
        _check_models()
    _NAMES.add(name)


def _check_models() -> None:
    """Has transformers refuse models that compute attention by code of their own: it does for "sdpa", but takes any registered name."""
    from transformers import PreTrainedModel

    adjust, choose = PreTrainedModel.get_correct_attn_implementation, PreTrainedModel.set_attn_implementation

    @functools.wraps(adjust)
    def adjusted(self: Any, requested_attention: str | None, is_init_check: bool = False) -> str:
        if requested_attention in _NAMES:
            _refuse(type(self), requested_attention)
        chosen: str = adjust(self, requested_attention, is_init_check)
        return chosen

    @functools.wraps(choose)
    def chosen(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(attn_implementation, str) and attn_implementation in _NAMES:
            _refuse(type(self), attn_implementation)  # transformers would warn, and leave the model as it is
        choose(self, attn_implementation, *args, **kwargs)

    PreTrainedModel.get_correct_attn_implementation = adjusted  # type: ignore[method-assign]
    PreTrainedModel.set_attn_implementation = chosen  # type: ignore[method-assign]


def _refuse(kind: Any, name: str | None) -> None:
    """Raises ValueError for a class of models that would not call our attention, or only with masks of a kind of its own."""
    if not kind._can_set_attn_implementation():
        raise ValueError(
            f'{kind.__name__} does not support attn_implementation="{name}": it computes attention by its own code; '
            'use attn_implementation="eager"'
        )
    if not (kind._supports_sdpa or kind._supports_flex_attn or kind._supports_attention_backend):
        raise ValueError(
            f'{kind.__name__} does not support attn_implementation="{name}": transformers runs it with "eager" alone'
        )


# -- the mask ------------------------------------------------------------------------------------------------------------------------


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **rest: Any,
) -> torch.Tensor:
    """The booleans [b, 1, i, j] that transformers makes, right for whatever code reads them; with their pattern where one says it all.

    The pattern is an attribute of the tensor. `generate` clones masks and passes them to a second call: what loses it stays right.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, prepare_padding_mask, sdpa_mask

    padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
    if padding is None:
        real = torch.ones((1, 1), dtype=torch.bool, device=device).expand(batch_size, kv_length)
    else:
        real = padding[:, kv_offset : kv_offset + kv_length].bool()
    if not use_vmap and mask_function is bidirectional_mask_function:
        return real[:, None, None, :].expand(-1, -1, q_length, -1)
    window = local_size if not torch.compiler.is_compiling() and _is_window(mask_function) else None
    formula = not use_vmap and (mask_function is causal_mask_function or window is not None)
    made = sdpa_mask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        mask_function or causal_mask_function,
        attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False,
        use_vmap=use_vmap,
        device=device,
    )
    assert isinstance(made, torch.Tensor), "skips are not allowed above"
    return _marked(made, Pattern(window, real)) if formula and q_offset + q_length == kv_offset + kv_length else made


def _marked(mask: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """A view of the mask, a tensor of our own to write the attribute on."""
    marked = mask.view(mask.shape)
    setattr(marked, MARK, pattern)
    return marked


def _is_window(function: Callable[..., Any] | None) -> bool:
    """Is this the intersection of `causal` and `sliding window`, and nothing else?"""
    if function is None or not inspect.isfunction(function):
        return False
    parts = inspect.getclosurevars(function).nonlocals.get("mask_functions", ())
    names = sorted(getattr(p, "__qualname__", "") for p in parts)
    return names == ["causal_mask_function", "sliding_window_overlay.<locals>.inner_mask"]


# -- the attention -------------------------------------------------------------------------------------------------------------------


def _forward(
    spec: Attention | None,
    backend: BackendName | None,
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
    output_attentions: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What a model calls: q[b, h, i, d], k and v with fewer heads -> o[b, i, h, e], no weights."""
    if dropout:
        raise ValueError(f"attention dropout must be 0: the fused kernels have none; found {dropout} (set it in the config)")
    if output_attentions:
        raise ValueError("output_attentions: a fused kernel never holds the attention weights; use attn_implementation='eager'")
    shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    causal, window, tensors = _visible(module, attention_mask, is_causal, shape)
    if position_bias is not None:
        bias = position_bias.expand(shape)
        tensors["bias"] = tensors["bias"] + bias if "bias" in tensors else bias
    if s_aux is not None:
        tensors["sink"] = s_aux
    if spec is None:
        out = general(query, key, value, tensors, scale=scaling, causal=causal, window=window, cap=softcap, backend=backend)
    else:
        out = _by_spec(spec, (query, key, value), tensors, {"scale": scaling, "cap": softcap, "window": window})
    return out.transpose(1, 2).contiguous(), None  # as sdpa's: models take views of it


def _visible(
    module: torch.nn.Module, mask: torch.Tensor | None, is_causal: bool | None, shape: tuple[int, ...]
) -> tuple[bool, int | None, dict[str, torch.Tensor]]:
    """Causality, window and tensors that a mask stands for. Raises ValueError for one that is none of ours."""
    if mask is None:
        causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
        return bool(causal) and shape[2] > 1, None, {}
    pattern = getattr(mask, MARK, None)
    if isinstance(pattern, Pattern) and mask.shape[2:] == shape[2:]:
        return True, pattern.window, {"pad": pattern.real}
    try:
        whole = mask.expand(shape)  # a mask made for a cache without keys has one column, for all of them
    except RuntimeError:
        raise ValueError(f"the attention mask must broadcast to {list(shape)}, found {list(mask.shape)}") from None
    return False, None, {"mask" if mask.dtype == torch.bool else "bias": whole}


def _by_spec(
    spec: Attention,
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    tensors: dict[str, torch.Tensor],
    numbers: dict[str, float | int | None],
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
    out = spec(*qkv, **given)
    if not isinstance(out, torch.Tensor):
        raise ValueError(f"{spec.name} has {len(out)} outputs; a model takes one")
    return out
