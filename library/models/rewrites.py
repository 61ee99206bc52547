"""Rewrites of whole models: the same function of fewer operations, or nearly the same one of fewer layers or weights.

A model is named by what it is made of: `*` in a pattern stands for any part of a name, as in `blocks.*.norm`. Every rewrite returns a copy.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional


class RootMeanSquareNorm(nn.Module):
    """A LayerNorm of tokens whose mean is 0: weight x / sqrt(mean x^2 + eps) + bias."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return y if self.bias is None else y + self.bias


def pre_rms_norm(
    model: nn.Module, writes: Sequence[str], norms: Sequence[str], run: Callable[[nn.Module], torch.Tensor]
) -> nn.Module:
    """The same model with norms that subtract no mean (Pre-RMSNorm, Jiang et al., NeurIPS 2023).

    Everything that is added to the residual stream, ``writes`` (linear maps, convolutions, embeddings, tables), gives up its mean over
    channels, so that the ``norms``, which alone read the stream, find none. Raises ValueError where ``run`` of both, in float64, differs:
    something else is added to the stream, or reads it.
    """
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        before, after = run(exact), run(_centred_model(exact, writes, norms))
    apart = (before - after).abs().max().item()
    if not apart <= 1e-9 * max(1.0, before.abs().max().item()):
        raise ValueError(f"the stream has a mean, or is read where it is not normalised: outputs are {apart:.2g} apart")
    return _centred_model(model, writes, norms)


def _centred_model(model: nn.Module, writes: Sequence[str], norms: Sequence[str]) -> nn.Module:
    out = copy.deepcopy(model)
    tables = dict(out.named_parameters())
    for name in _matching([n for n, _ in out.named_modules()] + list(tables), writes):
        if name in tables:
            owner, _, last = name.rpartition(".")
            setattr(out.get_submodule(owner), last, _centred(tables[name], -1))
        else:
            _centre(name, out.get_submodule(name))
    for name in _matching([n for n, _ in out.named_modules()], norms):
        norm = out.get_submodule(name)
        if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
            raise ValueError(f"a LayerNorm over one axis was expected at {name}, found {norm}")
        _replace(out, name, RootMeanSquareNorm(norm))
    return out


def _centre(name: str, module: nn.Module) -> None:
    """Takes the mean over output channels off. New parameters: what shares a weight with the module keeps the old one."""
    match module:
        case nn.Embedding():
            module.weight = _centred(module.weight, -1)
        case nn.Linear() | nn.Conv1d() | nn.Conv2d():
            module.weight = _centred(module.weight, 0)
            module.bias = None if module.bias is None else _centred(module.bias, 0)
        case _:
            raise ValueError(f"a linear map, a convolution or an embedding was expected at {name}, found {module}")


def _centred(table: torch.Tensor, axis: int) -> nn.Parameter:
    with torch.no_grad():
        return nn.Parameter(table - table.mean(axis, keepdim=True))


def redundancy(
    model: nn.Module, norms: Sequence[str], branches: Sequence[str], run: Callable[[nn.Module], object]
) -> dict[str, float]:
    """How little every branch changes its stream: 1 - cos(x, x + branch(norm(x))), the mean over the tokens of ``run``, by the name of the
    branch (He et al., 2024). A branch has the norm of the same place in the model's order."""
    names = [n for n, _ in model.named_modules()]
    pairs = list(zip(_matching(names, norms), _matching(names, branches), strict=True))
    streams: dict[str, torch.Tensor] = {}
    found: dict[str, list[torch.Tensor]] = {b: [] for _, b in pairs}

    def read(branch: str) -> Callable[..., None]:
        return lambda _, given: streams.__setitem__(branch, given[0])

    def written(branch: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: object, out: torch.Tensor) -> None:
            x = streams[branch]
            found[branch].append(1 - functional.cosine_similarity(x, x + out, dim=-1).mean())

        return hook

    hooks = [model.get_submodule(n).register_forward_pre_hook(read(b)) for n, b in pairs]
    hooks += [model.get_submodule(b).register_forward_hook(written(b)) for _, b in pairs]
    try:
        with torch.no_grad():
            run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return {b: torch.stack(each).mean().item() for b, each in found.items()}


class Nothing(nn.Module):
    """A branch that adds nothing."""

    def forward(self, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        return torch.zeros_like(x)


def without(model: nn.Module, branches: Iterable[str]) -> nn.Module:
    """The model with branches of its residual stream left out: those that `redundancy` finds least, say."""
    out = copy.deepcopy(model)
    for name in _matching([n for n, _ in out.named_modules()], branches):
        _replace(out, name, Nothing())
    return out


class RecursiveStack(nn.Module):
    """One block run ``depth`` times, every matrix with a correction B A of ``rank`` for each time (relaxed recursive transformers, Bae et
    al., ICLR 2025); vectors, those of norms and the biases, are each time's own here."""

    def __init__(self, block: nn.Module, depth: int, rank: int) -> None:
        super().__init__()
        self.block, self.depth = block, depth
        self.names = [n for n, _ in block.named_parameters()]
        self.up, self.down = nn.ParameterList(), nn.ParameterList()
        for p in block.parameters():
            up = torch.zeros(depth, p.shape[0], rank) if p.dim() == 2 else torch.zeros(depth, *p.shape)
            down = torch.randn(depth, rank, p.shape[1]) * p.shape[1] ** -0.5 if p.dim() == 2 else torch.ones(())
            self.up.append(up.to(p))
            self.down.append(down.to(p))

    @classmethod
    def of(cls, blocks: Sequence[nn.Module], rank: int) -> RecursiveStack:
        """What is nearest to blocks of one architecture: their mean, and the largest singular values of what is apart from it."""
        out = cls(copy.deepcopy(blocks[0]), len(blocks), rank)
        with torch.no_grad():
            for n, p in enumerate(out.block.parameters()):
                each = torch.stack([list(b.parameters())[n] for b in blocks])
                p.copy_(each.mean(0))
                if p.dim() != 2:
                    out.up[n].copy_(each - p)
                    continue
                u, s, v = torch.linalg.svd(each - p, full_matrices=False)
                kept = min(rank, s.shape[-1])
                out.up[n].zero_()[..., :kept] = u[..., :kept] * s[:, None, :kept]
                out.down[n].zero_()[:, :kept] = v[:, :kept]
        return out

    def forward(self, x: torch.Tensor, *given: Any) -> torch.Tensor:
        for turn in range(self.depth):
            weights = {}
            for name, p, up, down in zip(self.names, self.block.parameters(), self.up, self.down, strict=True):
                weights[name] = p + (up[turn] @ down[turn] if p.dim() == 2 else up[turn] * down)
            x = functional_call(self.block, weights, (x, *given))
        return x


def _matching(names: Sequence[str], patterns: Iterable[str]) -> list[str]:
    """The names that patterns ask for, in the model's order. Raises ValueError for a pattern that finds none."""
    found = set()
    for pattern in patterns:
        mine = fnmatch.filter(names, pattern)
        if not mine:
            raise ValueError(f"nothing in the model is called {pattern}")
        found |= set(mine)
    return [n for n in names if n in found]


def _replace(model: nn.Module, name: str, by: nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, by)
