"""Attention over a part of the keys, and the operators that put parts together: decoding, several devices, streams of keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from einfuse.ir import Cascade, Scalar
from einfuse.ir.passes import split


@dataclass(frozen=True, slots=True)
class PartialState:
    """What an attention knows after some of its keys: the states of its one pass, by name.

    ``tensors`` are [*ambient ranks, *ranks of the state], such as m [B, H, Nq] and o_0 [B, H, Nq, E], in accumulation precision.
    ``given`` are the arguments of the call, for the last steps to read (a sink, a gate), and the sizes that no state tells.
    """

    tensors: dict[str, torch.Tensor]
    given: dict[str, torch.Tensor | Scalar]
    dtype: torch.dtype


def bounds(split_: split.Split, whole: Cascade, sizes: Mapping[str, int], keys: tuple[int, int] | None) -> torch.Tensor:
    """The bounds of one part as the partial cascade takes them. Raises ValueError for a part that is not within the keys."""
    fold = split_.rank
    extent = whole.rank(fold).size
    count = extent if isinstance(extent, int) else sizes[extent]
    first, last = keys if keys is not None else (0, count)
    if not 0 <= first <= last <= count:
        raise ValueError(f"{whole.name}: keys must be a pair with 0 <= first <= last <= {count}, found {keys}")
    return torch.tensor([[first, last]])


def stacked(split_: split.Split, over: int, states: Sequence[PartialState]) -> dict[str, torch.Tensor]:
    """The states of several parts as the merging cascade takes them. Raises ValueError for states that do not fit together."""
    first = states[0]
    for other in states[1:]:
        for name in split_.states:
            found, expected = other.tensors[name].shape, first.tensors[name].shape
            if found != expected:
                raise ValueError(
                    f"states of one merge must be of the same queries: {name} is {tuple(expected)} and {tuple(found)}"
                )
    return {split_.held[n]: torch.stack([s.tensors[n] for s in states], over) for n in split_.states}
