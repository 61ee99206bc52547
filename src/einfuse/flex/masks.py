"""Functions that make mask functions of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MaskFunction = Callable[..., Any]
"""``(b, h, q_idx, kv_idx) -> condition``"""
ScoreFunction = Callable[..., Any]
"""``(score, b, h, q_idx, kv_idx) -> score``"""


def noop_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    """Every query sees every key."""
    return kv_idx == kv_idx


def and_masks(*mask_mods: MaskFunction) -> MaskFunction:
    """The mask of what all the masks let through. Raises TypeError for what is no function."""
    functions = _functions(mask_mods)

    def and_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = noop_mask(b, h, q_idx, kv_idx)
        for mask in functions:
            result = result & mask(b, h, q_idx, kv_idx)
        return result

    return and_mask


def or_masks(*mask_mods: MaskFunction) -> MaskFunction:
    """The mask of what any of the masks lets through. Raises TypeError for what is no function."""
    functions = _functions(mask_mods)

    def or_mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        result = kv_idx != kv_idx
        for mask in functions:
            result = result | mask(b, h, q_idx, kv_idx)
        return result

    return or_mask


def _functions(mask_mods: tuple[MaskFunction, ...]) -> tuple[MaskFunction, ...]:
    wrong = [m for m in mask_mods if not callable(m)]
    if wrong:
        raise TypeError(f"mask functions are called with (b, h, q_idx, kv_idx); found {type(wrong[0]).__name__} {wrong[0]!r}")
    return mask_mods
