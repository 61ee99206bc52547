"""A call made ready whose gradients may be asked for: one node of autograd that runs the graphs of both directions itself.

A backward that something has to see (one of higher order, under a transform or a mode, in autocast) goes through the operators of
`einfuse.runtime.ops`, as does a call that something has to see (`runtime.prepared`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from einfuse.ir import Scalar
from einfuse.runtime import ops
from einfuse.runtime.backends import Backend
from einfuse.runtime.given import Given
from einfuse.runtime.graph import Graph, Run
from einfuse.runtime.program import Program
from einfuse.runtime.quiet import plain, watched


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A kind of call with the inputs that want gradients. ``graph`` is that of the forward, ``operator`` gives what operators begin with."""

    program: Program
    backend: Backend
    graph: Graph
    wanted: tuple[str, ...]
    operator: Callable[[Mapping[str, Scalar]], ops.Call]

    def __call__(self, given: Given, again: Run | None = None) -> list[torch.Tensor]:
        """The outputs, with a record; ``again`` runs the graph where it is bound to the signature of the call."""
        return list(_Node.apply(self, given, again, *given.tensors.values()))  # type: ignore[no-untyped-call]  # torch's

    def gradients(
        self, given: Given, saved: Sequence[torch.Tensor], directions: Sequence[torch.Tensor]
    ) -> list[torch.Tensor | None]:
        """The gradient of every tensor of a call, None for those that want none."""
        public, tensors = self.program.cascade.outs, given.tensors
        every = (*tensors.values(), *saved, *directions)
        if torch.is_grad_enabled() or watched() or not all(map(plain, every)) or not all(x.numel() for x in directions):
            needs = [n in self.wanted for n in tensors]
            found = iter(
                ops.backward(*self.operator(given.numbers), list(tensors.values()), needs, list(saved), list(directions))
            )
            return [next(found) if n in self.wanted else None for n in tensors]
        kept, adjoints = dict(zip(self.graph.outs, saved, strict=True)), dict(zip(public, directions, strict=True))
        named = self.program.backward(given, kept, adjoints, self.backend, self.wanted)
        return [named.get(n) for n in tensors]


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ready: Recorded, given: Given, again: Run | None, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        held = dict(given.tensors)
        outs = ready.graph.run(held, given) if again is None else again(held)
        ctx.ready, ctx.names, ctx.numbers, ctx.sizes = ready, tuple(given.tensors), given.numbers, given.sizes
        ctx.save_for_backward(*tensors, *outs)
        return tuple(outs[: len(ready.program.cascade.outs)])

    @staticmethod
    def backward(ctx: Any, *directions: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        held = ctx.saved_tensors  # asked for once: checkpointing computes them again, and only once
        count = len(ctx.names)
        given = Given(dict(zip(ctx.names, held[:count], strict=True)), ctx.numbers, ctx.sizes)
        return (None, None, None, *ctx.ready.gradients(given, held[count:], directions))
