"""What an exchange costs: the very program of a call, on tensors without memory, over a transport that counts.

Nothing is estimated. Routes, messages and gradients are those of the call; only kernels are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from einfuse.distributed import parts, programs
from einfuse.distributed.here import At, Axis, Here, Kind, Values, axes_of, has_features, tensors
from einfuse.distributed.transport import Arrival
from einfuse.ir import Cascade
from einfuse.ir import expr as ex
from einfuse.ir.passes.shard import held
from einfuse.runtime import binding
from einfuse.runtime.outputs import accumulation


@dataclass(frozen=True, slots=True)
class Count:
    """Bytes that each device sends to each, ``sent[s][d]``, in a forward and in a backward."""

    forward: tuple[tuple[int, ...], ...]
    backward: tuple[tuple[int, ...], ...]

    @property
    def busiest(self) -> tuple[int, int]:
        """The bytes of the device that sends the most, forward and backward."""
        return max(((sum(f), sum(b)) for f, b in zip(self.forward, self.backward, strict=True)), key=sum, default=(0, 0))

    @property
    def most(self) -> int:
        return sum(self.busiest)


class Counting:
    """A transport from nowhere to nowhere."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent = [0] * size

    def post(self, name: str, sends: Mapping[int, torch.Tensor], receives: Mapping[int, int]) -> Arrival:
        for d, x in sends.items():
            self.sent[d] += x.numel()
        return lambda: {s: torch.empty(n, dtype=torch.uint8, device="meta") for s, n in receives.items()}


def counted(
    c: Cascade, axes: Sequence[programs.Route], here: Here, transports: parts.Transports, inputs: Values, name: str
) -> Count:
    """The bytes along the axis of that name of a call, on every device of it."""
    axis = next(a for a, _ in axes if a.name == name)
    size = transports[name].size
    forward, backward = [], []
    for rank in range(size):
        counting = {n: Counting(t.rank, t.size) for n, t in transports.items()}
        one = counting[name] = Counting(rank, size)
        count = here.at[name].size
        own = parts.of_device(count, one)
        there = replace(here, at={**here.at, name: At(own[0], count)}, evaluate=_nothing)
        with torch.enable_grad():
            outs = parts.run(c, axes, there, counting, _described(c, axis, here, inputs, own))
            forward.append(tuple(one.sent))
            wanted = [x for x in outs.values() if x.requires_grad]
            if wanted and here.training:
                torch.autograd.backward(wanted, [torch.empty_like(x) for x in wanted])
        backward.append(tuple(b - f for b, f in zip(one.sent, forward[-1], strict=True)))
    return Count(tuple(forward), tuple(backward))


def _described(c: Cascade, axis: Axis, here: Here, inputs: Values, own: range) -> Values:
    """The inputs as a device with these parts has them: tables of whole numbers, which masks read, as they are, others without memory."""
    along = held(c, axis.ranks)
    out = dict(inputs)
    for n, x in tensors(inputs).items():
        if n in along:
            shape = list(x.shape)
            rows = here.rows(axis, c.input(n).given[0][along[n]])
            shape[along[n]] = sum(len(rows[p]) for p in own)
            out[n] = torch.empty(shape, dtype=x.dtype, device="meta", requires_grad=x.requires_grad)
        elif x.is_floating_point():
            out[n] = torch.empty_like(x, device="meta").requires_grad_(x.requires_grad)
    return out


def _nothing(c: Cascade, values: Values, kind: Kind) -> dict[str, torch.Tensor]:
    """Outputs of the right shape, which depend on all inputs."""
    found = {n: x.to("meta") for n, x in tensors(values).items()}
    sizes = binding.sizes(c, found)
    link = sum((x.sum() for x in found.values() if x.requires_grad), torch.zeros((), device="meta"))
    out = {}
    for n in c.outs:
        shape = [binding.evaluate(ex.size(c.rank(r).size), sizes) for r in axes_of(c, n)]
        narrow = kind == "" and has_features(c, n)
        dtype = binding.precision_of(c, found) if narrow else accumulation(found.values())
        out[n] = torch.empty(shape, dtype=dtype, device="meta") + link.to(dtype)
    return out
