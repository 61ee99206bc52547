"""The attention that every framework's call is turned into: one spec with optional inputs, compiled once for each set of switches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from einfuse import _spread
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName
from einfuse.runtime.compile import compile

SPEC = Path(__file__).with_name("general.attn")

Kind = tuple[tuple[bool, bool, bool, bool], BackendName | None]
_KNOWN: dict[Kind, Attention] = {}


def _known(kind: Kind) -> bool:
    """Leaves the attention with these switches in `_KNOWN`. torch.compile calls this, and does not trace it."""
    if kind not in _KNOWN:
        switches, backend = kind
        causal, windowed, both, capped = switches
        made = compile(SPEC, backend=backend, causal=causal, windowed=windowed, both=both, capped=capped)
        _KNOWN.setdefault(kind, made)
    return True


vars(_known)["_dynamo_marked_constant"] = True  # as `torch.compiler.assume_constant_result`, which imports the compiler


def general(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    optional: Mapping[str, torch.Tensor] | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
    shift: int = 0,
    window: int | None = None,
    both: bool = False,
    cap: float | None = None,
    rate: float = 0.0,
    backend: BackendName | None = None,
) -> torch.Tensor:
    """Softmax attention with what frameworks ask for; q: [B, H, Nq, D], k: [B, Hk, Nk, D], v: [B, Hk, Nk, E] -> [B, H, Nq, E].

    ``causal`` hides the keys behind which no query stands, ``window`` those that lie so far behind the query or farther, and with ``both``
    also those so far ahead of it; query 0 stands beside key ``shift`` (``Nk - Nq``: the last query beside the last key). ``cap`` bends
    the scores. ``optional`` are pad[B, Nk] and mask[B, H, Nq, Nk] (booleans, true: visible), bias[B, H, Nq, Nk], sink[H], qdoc[B, Nq]
    and kdoc[B, Nk] (integers: a query sees the keys of its own document), and seed[B] (integers: weights are dropped with probability
    ``rate``, drawn from them). Masks and biases may be expanded views. A row that sees no key gives 0.
    """
    if _spread.spread():
        check_parts(q, k, optional or {}, shift)
    elif causal and shift >= k.shape[-2] - 1:  # decided here, as torch.compile traces this: every query sees all keys
        causal = False
    kind = ((causal, window is not None, both, cap is not None), backend)
    _known(kind)
    numbers: dict[str, float] = {"scale": max(1, q.shape[-1]) ** -0.5 if scale is None else scale}
    if causal or window is not None:
        numbers["shift"] = shift
    if window is not None:
        numbers["window"] = window
    if cap is not None:
        numbers["cap"] = cap
    if rate:
        numbers["rate"] = rate
    out = _spread.runner(_KNOWN[kind])(q, k, v, **numbers, **(optional or {}))
    assert isinstance(out, torch.Tensor), "the spec has one output"
    return out


def check_parts(q: torch.Tensor, k: torch.Tensor, optional: Mapping[str, torch.Tensor], shift: int) -> None:
    """Raises ValueError for a call that speaks of positions, where a device knows a part of them (`einfuse.distributed.use`)."""
    if shift or q.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"einfuse.distributed.use: each device has queries and keys of the same tokens, found {q.shape[-2]} queries beside "
            f"{k.shape[-2]} keys; a cache of keys, or attention to another sequence, is not available over devices"
        )
    for name, what in (("mask", "a dense mask"), ("bias", "a dense bias or mask"), ("qdoc", "packed sequences")):
        if name in optional:
            raise ValueError(
                f"einfuse.distributed.use: {what} would be of this device's tokens alone; write it as a spec, and call "
                "einfuse.distributed.shard"
            )
