"""Which models take our attention: those that call it, with masks that it knows."""

from __future__ import annotations

import functools
from typing import Any

from einfuse.integrations.reports import NAMES
from einfuse.integrations.transformers import masks
from einfuse.integrations.transformers.attention import warn_once


def check_models() -> None:
    """Has transformers ask `taken` for the names of einfuse: it asks so for "sdpa", but takes any registered name for any model."""
    from transformers import PreTrainedModel

    adjust, choose = PreTrainedModel.get_correct_attn_implementation, PreTrainedModel.set_attn_implementation

    @functools.wraps(adjust)
    def adjusted(self: Any, requested_attention: str | None, is_init_check: bool = False) -> str:
        chosen: str = adjust(self, taken(type(self), requested_attention), is_init_check)
        if not self._supports_sdpa:
            masks.ADDED.add(type(self.config))
        return chosen

    @functools.wraps(choose)
    def chosen(self: Any, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        choose(self, taken(type(self), attn_implementation), *args, **kwargs)  # which would warn, and leave the model as it is

    PreTrainedModel.get_correct_attn_implementation = adjusted  # type: ignore[method-assign]
    PreTrainedModel.set_attn_implementation = chosen  # type: ignore[method-assign]


def taken(kind: Any, name: Any) -> Any:
    """The implementation that a class of models takes when asked for ``name``; raises ValueError where it would not call einfuse's."""
    policy = NAMES.get(name) if isinstance(name, str) else None
    why = obstacle(kind) if policy else None
    if why is None:
        return name
    other = "sdpa" if kind._supports_sdpa else "eager"
    if policy == "refuse":
        raise ValueError(
            f'{kind.__name__} does not support attn_implementation="{name}": {why}; use attn_implementation="{other}"'
        )
    warn_once(f'{kind.__name__}: {why}. unsupported="fallback": it is run with attn_implementation="{other}"')
    return other


def obstacle(kind: Any) -> str | None:
    """Why a class of models would not call an attention of ours, or only with masks of a kind of its own."""
    if not kind._can_set_attn_implementation():
        return "it computes attention by its own code"
    if not (kind._supports_sdpa or kind._supports_flex_attn or kind._supports_attention_backend):
        return 'transformers runs it with "eager" alone'
    return None
