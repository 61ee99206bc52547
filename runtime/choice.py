"""Is a list of coordinates a right choice? By the oracle's scores, up to what rounding may do to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from einfuse.ir import Scalar
from einfuse.ir.passes.choose import Scores
from einfuse.runtime.bound import Difference, Trial
from einfuse.runtime.selection import listed, scored

_FACTOR = 16.0
"""Of the largest deviation of one number, of which there are a few draws only: hence more than `bound.FACTOR`."""


def compared(step: Scores, known: Mapping[str, torch.Tensor | Scalar], trial: Trial) -> Difference:
    """How far the scores of a list lie behind those of the oracle's own choice, and how far rounding may bring them.

    The error is the largest amount by which a slot's score is below that of the oracle's choice for the slot. It is infinite where a list
    holds a coordinate that does not exist, or twice, or the wrong number of them. ``known`` holds the list, and those that its scores read.
    Scores are computed in float32 or wider, so that the bound is that of float32 even where the tensors have 16 bits.
    """
    dtype = torch.float64 if trial.dtype == torch.float64 else torch.float32
    given = {t.name: known[t.name] for t in step.cascade.inputs}
    mine = {n: x.cpu() if isinstance(x, torch.Tensor) else x for n, x in given.items()}
    scores = replace(trial, cascade=step.cascade, inputs=mine, dtype=dtype, gradients=False)
    truth = dict(zip(step.cascade.outs, (scores.truth[f"out {n}"] for n in range(len(step.cascade.outs))), strict=True))
    at = known[step.target]
    assert isinstance(at, torch.Tensor), "a list is a tensor"
    at = at.cpu()
    ideal = listed(step, truth, at.shape[-1] if step.slots is not None else 1)
    if not step.ranked:
        return Difference(0.0 if torch.equal(at, ideal) else math.inf, 0.0)
    if step.slots is None:
        at, ideal = at[..., None], ideal[..., None]
    value, exists = scored(step, truth)
    live = ideal >= 0
    here = at.clamp_min(0)
    sound = bool(((at >= 0) == live).all()) and bool((here < value.shape[-1]).all())
    if sound and exists is not None:
        sound = bool(exists.expand(value.shape).gather(-1, here)[live].all())
    ordered = here.masked_fill(~live, -1).sort(-1).values
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    if not sound or bool(twice.any()):
        return Difference(math.inf, 0.0)
    ideal, here = ideal.clamp_min(0), here.clamp_min(0)
    room = _FACTOR * scores.deviations("out 0").reshape(value.shape)
    room = room + 2 * torch.finfo(dtype).eps * value.abs()
    behind = (value.gather(-1, ideal) - value.gather(-1, here))[live].nan_to_num(0, 0, 0)
    allowed = (room.gather(-1, ideal) + room.gather(-1, here))[live].nan_to_num(0, 0, 0)
    if not behind.numel():
        return Difference(0.0, 0.0)
    worst = int((behind - allowed).argmax())
    return Difference(max(behind[worst].item(), 0.0), allowed[worst].item())
