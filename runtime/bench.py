"""Ratios, never bare times: our kernel and the peer a user would pick, interleaved in one run; medians and spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from einfuse.ir import Scalar
from einfuse.runtime import binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.live import live_share, without_masks
from einfuse.runtime.verify import DTYPES


@dataclass(frozen=True, slots=True)
class BenchRow:
    """``ratio`` = the peer's time / ours (above 1: we are faster), the median of interleaved runs; ``spread`` = its interquartile range.

    ``live`` is the share of the forward's tiles that the mask leaves. ``per_tile`` is the time for each of them over the time that the same
    attention without its mask takes for a tile (1: work follows the mask); None without a mask, or where nothing is left of it.
    """

    variant: str
    dtype: str
    shape: str
    peer: str
    ratio: float
    spread: float
    live: float = 1.0
    per_tile: float | None = None


@dataclass(frozen=True, slots=True)
class BenchShape:
    """B x H x S x D, as many keys as queries, no grouping."""

    batch: int = 1
    heads: int = 8
    length: int = 2048
    width: int = 64

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads} S{self.length} D{self.width}"


def bench(
    attentions: Sequence[Attention],
    *,
    dtypes: Sequence[str] = ("float32",),
    shapes: Sequence[BenchShape] = (BenchShape(),),
    backward: bool = False,
    repeats: int = 7,
    progress: Callable[[str], None] | None = None,
) -> list[BenchRow]:
    """Times each attention beside scaled_dot_product_attention: causal where the mask is exactly the causal one, full otherwise.

    The peer of a variant that SDPA cannot express is plain SDPA over the same tokens with a dense additive mask or bias where the spec is a
    softmax with a mask; it is named in the row.
    """
    rows = []
    for attention in attentions:
        for dtype in dtypes:
            for shape in shapes:
                if progress is not None:
                    progress(f"{attention.name} {dtype} {shape}")
                rows.append(_one(attention, dtype, shape, backward, repeats))
    return rows


def _one(attention: Attention, dtype: str, shape: BenchShape, backward: bool, repeats: int) -> BenchRow:
    inputs = bench_inputs(attention, DTYPES[dtype], shape)
    q, k, v = [x for x in inputs.values() if isinstance(x, torch.Tensor)][:3]
    causal = _is_causal(attention)
    peer_name = "sdpa causal" if causal else "sdpa full"

    def calling(which: Attention) -> Callable[[], torch.Tensor]:
        def call() -> torch.Tensor:
            out = which(**inputs)
            return out[0] if isinstance(out, tuple) else out

        return call

    def peer() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    leaves = [x for x in inputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    whole, live = without_masks(attention), live_share(attention, inputs)
    named = (calling(attention), peer, *([calling(whole)] if whole and live else []))
    (ratio, spread), *dense = interleaved([_with_backward(fn, leaves if backward else []) for fn in named], repeats)
    per_tile = 1 / (live * dense[0][0]) if dense else None
    return BenchRow(
        attention.name, dtype, str(shape), peer_name + (" fwd+bwd" if backward else ""), ratio, spread, live, per_tile
    )


def _is_causal(attention: Attention) -> bool:
    return "j <= i" in attention.ir(after="infer_space")


def _with_backward(fn: Callable[[], torch.Tensor], leaves: Sequence[torch.Tensor]) -> Callable[[], None]:
    def run() -> None:
        if not leaves:
            with torch.no_grad():
                fn()
            return
        wanted = [x.requires_grad_() for x in leaves]
        out = fn()
        torch.autograd.grad(out, wanted, torch.ones_like(out), allow_unused=True)

    return run


def interleaved(runs: Sequence[Callable[[], None]], repeats: int) -> list[tuple[float, float]]:
    """Median and interquartile range of each other's time / the first's, timed in turns after a warm-up."""
    for run in runs:
        run()
        run()
    ratios: list[list[float]] = [[] for _ in runs[1:]]
    for _ in range(repeats):
        times = []
        for run in runs:
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        for found, other in zip(ratios, times[1:], strict=True):
            found.append(other / times[0])
    from statistics import median  # here: with it come fractions and decimals, in every process that imports this package

    return [(median(found), _spread(found)) for found in ratios]


def _spread(ratios: Sequence[float]) -> float:
    from statistics import quantiles

    quartiles = quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return quartiles[2] - quartiles[0]


def bench_inputs(attention: Attention, dtype: torch.dtype, shape: BenchShape) -> Mapping[str, torch.Tensor | Scalar]:
    """Contiguous arguments of a benchmark shape; ints are document ids of eight equal documents, booleans all true."""
    kinds = {"batch": shape.batch, "head": shape.heads, "query": shape.length, "key": shape.length, "feature": shape.width}
    sizes = {r.size: kinds.get(r.kind, shape.width) for r in attention.cascade.ranks if isinstance(r.size, str)}
    out: dict[str, torch.Tensor | Scalar] = {}
    for t in attention.cascade.inputs:
        if t.param:
            if t.default is None:
                out[t.name] = 256 if t.dtype == "int" else 0.5
            continue
        for axis in t.axes:
            for e in (axis, *axis.args):
                if e.op == "size":
                    sizes.setdefault(e.name, 1 if axis.op == "//" else shape.length)
        extents = [int(binding.evaluate(a, sizes)) for a in t.axes]
        if t.dtype == "float":
            out[t.name] = torch.randn(extents, dtype=torch.float32).to(dtype)
        elif t.dtype == "int":
            ids = torch.arange(extents[-1] if extents else 1) * 8 // max(extents[-1] if extents else 1, 1)
            out[t.name] = ids.expand(extents).contiguous() if extents else torch.tensor(1)
        else:
            out[t.name] = torch.ones(extents, dtype=torch.bool)
    return out
