"""Keys and values in 8 bits, with scales."""

from __future__ import annotations

from collections.abc import Collection

import torch

from einfuse.ir.passes import quantise as quantising
from einfuse.runtime.attention import Attention


def quantised(attention: Attention, dtype: torch.dtype = torch.int8, /, **scales: str) -> Attention:
    """The same attention over scaled inputs: ``quantised(attn, k="token, head", v="head")`` takes ``k`` as int8 (or any int) and ``k_scale``.

    With ``quantised(attn, torch.float8_e4m3fn, ...)`` they are floats of 8 bits, or of any other width. A scale has the axes that are named,
    in the order of the input: batch, head, token, feature; none: one number, a tensor of no axes. Raises SpecError for an input that is none,
    or has no such axis.
    """
    inputs = {n: tuple(a.strip() for a in text.split(",") if a.strip()) for n, text in scales.items()}
    found = quantising.run(attention.cascade, inputs, dtype.is_floating_point)
    return Attention(found.cascade, attention.backend, attention.strict)


def quantise(x: torch.Tensor, axes: Collection[int], dtype: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor]:
    """Values as int8, or ``torch.float8_e4m3fn`` or ``float8_e5m2``, and the scales that they are multiples of, one for each point of ``axes``.

    The largest of the values of a scale is the largest number of the type: 127, 448 or 57344. Raises TypeError for another type.
    """
    known = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
    if dtype not in known:
        raise TypeError(f"quantise: values are written as {', '.join(map(str, known))}, found {dtype}")
    lost = [n for n in range(x.ndim) if n not in {a % x.ndim for a in axes}]
    most = (torch.finfo if dtype.is_floating_point else torch.iinfo)(dtype).max
    scale = (x.abs().amax(lost, keepdim=True) / most).clamp_min(torch.finfo(x.dtype).tiny)
    found = (x / scale).clamp(-most, most)  # a quotient may be rounded up
    return (found if dtype.is_floating_point else found.round()).to(dtype), scale.squeeze(lost)
