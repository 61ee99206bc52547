"""The attention that every framework's call is turned into: one spec with optional inputs, compiled once for each set of switches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from einfuse.runtime import Attention, compile
from einfuse.runtime.backends import BackendName

SPEC = Path(__file__).with_name("general.attn")


_KNOWN: dict[tuple[bool, bool, bool, bool, BackendName | None], Attention] = {}


def _known(kind: tuple[bool, bool, bool, bool, BackendName | None]) -> bool:
    """Leaves the attention with these switches in `_KNOWN`. torch.compile calls this, and does not trace it."""
    if kind not in _KNOWN:
        causal, aligned, windowed, capped, backend = kind
        made = compile(SPEC, backend=backend, causal=causal, aligned=aligned, windowed=windowed, capped=capped)
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
    aligned: bool = True,
    window: int | None = None,
    cap: float | None = None,
    backend: BackendName | None = None,
) -> torch.Tensor:
    """Softmax attention with what frameworks ask for; q: [B, H, Nq, D], k: [B, Hk, Nk, D], v: [B, Hk, Nk, E] -> [B, H, Nq, E].

    ``aligned`` counts positions so that the last query stands beside the last key (decoding); otherwise the first ones do. ``window``
    hides keys that lie so far behind the query or farther, ``cap`` bends the scores. ``optional`` are pad[B, Nk] and mask[B, H, Nq, Nk]
    (booleans, true: visible), bias[B, H, Nq, Nk] and sink[H]; masks and biases may be expanded views. A row that sees no key gives 0.
    """
    causal = causal and not (aligned and q.shape[-2] == 1)  # a query beside the last key sees all
    kind = (causal, aligned, window is not None, cap is not None, backend)
    _known(kind)
    attention = _KNOWN[kind]
    numbers: dict[str, float] = {"scale": max(1, q.shape[-1]) ** -0.5 if scale is None else scale}
    if window is not None:
        numbers["window"] = window
    if cap is not None:
        numbers["cap"] = cap
    out = attention(q, k, v, **numbers, **(optional or {}))
    assert isinstance(out, torch.Tensor), "the spec has one output"
    return out
