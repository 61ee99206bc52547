"""The order of candidates: what `topk` means, for the interpreter and for every kernel's choice.

The largest value first; of equal values (also -0 and 0) the one with the lower coordinate; NaN behind every number; and of points that do
not exist none. A choice is the first entries of that order, so it is the same bit by bit wherever the values are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from einfuse.ir.reducers import MISSING

_HIDDEN = -(2**63)
_SMALL = 2**31
_WINDOW = 2**20
"""Candidates that are looked at together: few enough for a cache."""
_LINE = 64
"""Truth values of a line of a cache."""
_FEW = 4
"""Candidates for every slot from which on most rows are told by their values alone."""


def best(values: Tensor, exists: Tensor | None, slots: int) -> Tensor:
    """The coordinates along the last axis of the ``slots`` best ``values``, best first, where ``exists`` is true (None: everywhere).

    int64 [..., slots], `MISSING` where there are fewer points. ``values`` are floats or ints; ``exists`` broadcasts against them.
    """
    found = min(slots, values.shape[-1])
    values = values.detach()
    if not _fits(values):
        at = _by_sorting(values, exists, found)
    elif ordinary(values) and values.is_cpu and _FEW * found < values.shape[-1]:
        rows = values.reshape(-1, values.shape[-1])
        lives = None if exists is None else exists.expand(values.shape).reshape(rows.shape)
        step = max(1, _WINDOW // rows.shape[-1])
        parts = [
            _by_values(rows[n : n + step], None if lives is None else lives[n : n + step], found)
            for n in range(0, len(rows), step)
        ]
        at = torch.cat(parts).view(*values.shape[:-1], found)
    else:
        at = _by_keys(values, exists, found)
    if found == slots:
        return at
    return torch.cat([at, at.new_full((*at.shape[:-1], slots - found), MISSING)], -1)


def _fits(values: Tensor) -> bool:
    """May the order be that of 64-bit keys?"""
    return values.dtype in (torch.float32, torch.bfloat16, torch.float16) and values.shape[-1] < _SMALL


def ordinary(values: Tensor) -> bool:
    """Are these values that may be looked at, and not those of a graph that is captured, or of a transform?"""
    if torch.compiler.is_compiling() or type(values) is not Tensor or values.is_meta:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(values)


def _by_keys(values: Tensor, exists: Tensor | None, slots: int) -> Tensor:
    """By one number for every candidate: the bits of its value in order of size above, those of its coordinate below, from the last on.

    Keys are distinct, so that whatever finds the largest ones finds the same ones in the same order.
    """
    wide = values.float() + 0.0  # -0 is 0
    bits = wide.contiguous().view(torch.int32)
    size = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    size = torch.where(wide.isnan(), -_SMALL, size)  # below -inf
    coordinate = torch.arange(values.shape[-1], device=values.device)
    key = size * 2**32 + (2**32 - 1 - coordinate)
    if exists is not None:
        key = key.masked_fill(~exists, _HIDDEN)
    top = key.topk(slots, -1).values
    return torch.where(top == _HIDDEN, MISSING, 2**32 - 1 - (top & 2**32 - 1))


def _by_values(rows: Tensor, lives: Tensor | None, slots: int) -> Tensor:
    """By the values themselves where a row has more numbers than slots, and the first one left out is less than the last one chosen.

    Then it does not matter which of equal values is found first: they are put in order afterwards. Other rows go by keys.
    """
    known = rows.float().nan_to_num(-torch.inf, torch.inf, -torch.inf)
    known = known if lives is None else torch.where(lives, known, -torch.inf)
    top, at = known.topk(slots + 1, -1)
    unclear = (top[:, -2] == top[:, -1]).logical_or_(top[:, -2] == -torch.inf)
    top, at = top[:, :-1], at[:, :-1]
    first = at.argsort(-1)  # by coordinate, then by value: the second order keeps the first where values are equal
    out = at.gather(-1, first.gather(-1, top.gather(-1, first).argsort(dim=-1, descending=True, stable=True)))
    out[unclear] = _by_keys(rows[unclear], None if lives is None else lives[unclear], slots)
    return out


def _by_sorting(values: Tensor, exists: Tensor | None, slots: int) -> Tensor:
    """By two stable sorts: of the values, and of the classes number, NaN, none."""
    nan = values.isnan()
    kind = nan.long() if exists is None else torch.where(exists, nan.long(), 2)
    lowest = -torch.inf if values.is_floating_point() else torch.iinfo(values.dtype).min
    order = torch.where(nan, lowest, values).sort(dim=-1, descending=True, stable=True).indices
    kinds, again = kind.expand(values.shape).gather(-1, order).sort(dim=-1, stable=True)
    at = order.gather(-1, again)
    return torch.where(kinds == 2, MISSING, at)[..., :slots]


def members(entries: Tensor, span: int) -> Tensor:
    """Truth values [.., span] for lists of ints [.., n]: which of the numbers below ``span`` a list holds. Entries outside are none of them."""
    inside = torch.where((entries >= 0) & (entries < span), entries, span).long()  # others go to a place that is cut off
    wide = (span // (2 * _LINE) * 2 + 1) * _LINE  # an odd number of lines, so that rows that are read together do not collide
    wide = wide if wide > span else wide + 2 * _LINE
    has = torch.zeros((*entries.shape[:-1], wide), dtype=torch.bool, device=entries.device)
    return has.scatter_(-1, inside, True)[..., :span]
