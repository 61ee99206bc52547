"""The outputs after every key, for all keys at once: the derived merge as a parallel prefix scan (Feng et al., Attention as an RNN, 2024).

Each key is a part of its own; in log2(N) rounds every state is merged with the one 1, 2, 4, ... keys before it (Hillis and Steele, 1986).
Row by row the same as `Attention.step`, which needs one key at a time and constant memory. Nothing here knows a normaliser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade, Scalar, SpecError
from einfuse.ir.passes import split as splitting
from einfuse.runtime import binding
from einfuse.runtime.given import Given

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention, Output

States = dict[str, torch.Tensor]


def prefixes(attention: Attention, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor | Scalar]) -> Output:
    """See `Attention.prefix`."""
    found, partial, merge, finalise = attention._parts
    c = attention.cascade
    if not c.over:
        raise SpecError(
            f"{c.name} has no ambient rank, among whose points prefixes could be computed", c.loc, "give it a batch rank"
        )
    call = Given.called(c, args, kwargs)
    count = binding.extent_of(c, found.rank, call.sizes)
    first = torch.arange(count, device=call.device)
    outs = _tuple(partial(**call.inputs, **{partial.cascade.inputs[-1].name: torch.stack([first, first + 1], 1)}))
    # [keys, *ambient, ...]: the keys go in front of the first ambient rank, whose points the kernels take them for
    states = {n: o.movedim(len(c.over), 0) for n, o in zip(found.states, outs, strict=True)}
    given = {**call.inputs, **splitting.constants(found.sizes, call.sizes)}
    step = 1
    while step < count:
        pairs = {found.held[n]: torch.stack([x[:-step], x[step:]], len(c.over) + 1) for n, x in states.items()}
        merged = dict(zip(found.states, _batched(merge, pairs, given), strict=True))
        states = {n: torch.cat([x[:step], merged[n]]) for n, x in states.items()}
        step *= 2
    rows = _batched(finalise, {found.held[n]: x for n, x in states.items()}, given)
    dtype = binding.precision_of(c, call.tensors)
    out = tuple(x.movedim(0, len(c.over)).to(dtype) for x in rows)
    return out[0] if len(out) == 1 else out


def _batched(attention: Attention, held: States, given: Mapping[str, torch.Tensor | Scalar]) -> list[torch.Tensor]:
    """The attention at every point of the first axis of ``held``, which becomes part of the first ambient rank."""
    c = attention.cascade
    count = next(iter(held.values())).shape[0]
    names = {t.name for t in c.inputs}
    more = {n: _repeated(c, n, x, count) for n, x in given.items() if n in names}
    outs = _tuple(attention(**{n: x.flatten(0, 1) for n, x in held.items()}, **more))
    return [o.unflatten(0, (count, -1)) for o in outs]


def _repeated(c: Cascade, name: str, x: torch.Tensor | Scalar, count: int) -> torch.Tensor | Scalar:
    """An input once for every point, along the axes that go with the first ambient rank."""
    if not isinstance(x, torch.Tensor):
        return x
    axes = next(t.axes for t in c.inputs if t.name == name)
    size = c.rank(c.over[0]).size
    return x.repeat([count if a.op == "size" and a.name == size else 1 for a in axes]) if axes else x


def _tuple(outs: Output) -> tuple[torch.Tensor, ...]:
    return outs if isinstance(outs, tuple) else (outs,)
