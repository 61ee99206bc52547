"""Keys and values as small integers with scales."""

from __future__ import annotations

from collections.abc import Collection

import torch

from einfuse.ir.passes import quantise as quantising
from einfuse.runtime.attention import Attention


def quantised(attention: Attention, **scales: str) -> Attention:
    """The same attention over integers: ``quantised(attn, k="token, head", v="head")`` takes ``k`` as int8 (or any int) and ``k_scale``.

    A scale has the axes that are named, in the order of the input: batch, head, token, feature; none: one number, a tensor of no axes.
    Raises SpecError for an input that is none, or has no such axis.
    """
    inputs = {n: tuple(a.strip() for a in text.split(",") if a.strip()) for n, text in scales.items()}
    found = quantising.run(attention.cascade, inputs)
    return Attention(found.cascade, attention.backend, attention.strict)


def quantise(x: torch.Tensor, axes: Collection[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values as int8, and the scales that they are multiples of, one for each point of ``axes``: the largest of its values is 127 of them."""
    lost = [n for n in range(x.ndim) if n not in {a % x.ndim for a in axes}]
    scale = (x.abs().amax(lost, keepdim=True) / 127).clamp_min(torch.finfo(x.dtype).tiny)
    return (x / scale).round().to(torch.int8), scale.squeeze(lost)
