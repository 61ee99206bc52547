"""Poison for what no mask lets anyone see: positions of inputs that no live pair reads, and what a call must not make of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

import einfuse
from einfuse.ir import Cascade, Einsum, Scalar
from einfuse.ir.expr import indices, reads, walk
from einfuse.ir.interpreter import evaluate_indices
from einfuse.ir.passes import infer_space
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

Inputs = dict[str, torch.Tensor | Scalar]


def live_pairs(cascade: Cascade, inputs: Inputs, sizes: Mapping[str, int]) -> tuple[torch.Tensor, tuple[str, ...]] | None:
    """Where any reduction over keys has a point, over ambient ranks, queries and keys; None where that depends on scores."""
    c = infer_space.run(cascade)
    (key,) = (r.name for r in c.ranks if r.kind == "key")
    ranks = (*c.over, *(r.name for r in c.ranks if r.kind == "query" and r.name not in c.over), key)
    extent = {r.name: r.size if isinstance(r.size, int) else sizes[r.size] for r in c.ranks}
    live = torch.zeros([extent[r] for r in ranks], dtype=torch.bool)
    for x in c.body:
        if isinstance(x, Einsum) and key in x.over:
            if x.mask is None or not reads(x.mask) <= {t.name for t in c.inputs if t.dtype != "float" or t.param}:
                return None
            live |= evaluate_indices(c, [x.mask], ranks, inputs, sizes)[0].bool()
    return live, ranks


def unseen(cascade: Cascade, inputs: Inputs, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """Of every float tensor that is read at keys, the positions that no live pair reads; features are as alive as their position."""
    found = live_pairs(cascade, inputs, sizes)
    if found is None:
        return {}
    live, ranks = found
    loads = {e for x in cascade.body for y in x.expressions for e in walk(y) if e.op == "load"}
    out: dict[str, torch.Tensor] = {}
    for t in cascade.inputs:
        mine = [e for e in loads if e.name == t.name]
        if t.dtype != "float" or t.param or not all(ranks[-1] in indices(e) for e in mine):
            continue
        x = inputs[t.name]
        assert isinstance(x, torch.Tensor)
        seen = torch.zeros(x.shape, dtype=torch.bool)
        for e in mine:
            plain = [n for n, a in enumerate(e.args) if not indices(a) <= set(ranks)]  # features, read from end to end
            places = evaluate_indices(cascade, [a for n, a in enumerate(e.args) if n not in plain], ranks, inputs, sizes)
            points = [p.expand(live.shape)[live] for p in places]
            at = iter(points)
            seen[tuple(slice(None) if n in plain else next(at) for n in range(x.ndim))] = True
        if not seen.all():
            out[t.name] = ~seen
    return out


def results(attention: einfuse.Attention, inputs: Inputs) -> dict[str, torch.Tensor]:
    """Outputs and gradients along fixed directions."""
    leaves = {
        n: x.detach().clone().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for n, x in inputs.items()
    }
    outs = attention(**leaves)
    every = [o for o in (outs if isinstance(outs, tuple) else (outs,)) if o.requires_grad]
    generator = torch.Generator().manual_seed(3)
    along = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in every]
    wanted = {n: x for n, x in leaves.items() if isinstance(x, torch.Tensor) and x.requires_grad}
    found = torch.autograd.grad(every, list(wanted.values()), along, allow_unused=True)
    return {f"out {n}": o.detach() for n, o in enumerate(every)} | {
        f"d {n}": torch.zeros_like(x) if g is None else g for (n, x), g in zip(wanted.items(), found, strict=True)
    }


def check(attention: einfuse.Attention, inputs: Mapping[str, torch.Tensor | Scalar], dead: Mapping[str, torch.Tensor]) -> None:
    """Whatever lies at the positions in ``dead``, results are the same to the last bit, and gradients there are 0."""
    clean: dict[str, torch.Tensor] = {}
    for value in (0.0, float("nan"), float("inf")):
        poisoned = {n: x.masked_fill(dead[n], value) if n in dead else x for n, x in inputs.items()}  # type: ignore[union-attr]
        found = results(attention, poisoned)
        for name, x in found.items():
            assert torch.isfinite(x).all(), (value, name)
            assert torch.equal(x, clean.setdefault(name, x)), (value, name)
        for name, positions in dead.items():
            assert (found[f"d {name}"][positions] == 0).all(), (value, name)


def checked(attention: einfuse.Attention, shape: Shape, dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> set[str]:
    """Checks an attention on example inputs; returns the names of what was poisoned."""
    inputs = example_inputs(attention.cascade, dtype, 1, shape) | more
    numbers = {t.name: t.default for t in attention.cascade.inputs if t.param and t.default is not None}
    dead = unseen(attention.cascade, {**numbers, **inputs}, example_sizes(attention.cascade, shape))
    if dead:
        check(attention, inputs, dead)
    return set(dead)
