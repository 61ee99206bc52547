"""What one device computes, as a program that stops at every exchange: it yields a step, and is handed what the step brought."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass

import torch

from einfuse.distributed.here import Here, Kind, Values
from einfuse.distributed.routes import Route
from einfuse.ir import Cascade


@dataclass(frozen=True, slots=True)
class Move:
    """Tensors along their routes over an axis of the mesh, in one exchange; ``name`` is for messages.

    ``anchors`` are given where devices made the tensors, some perhaps of nothing: inputs that gradients are asked of on all devices, so that
    each takes part in the exchange of gradients.
    """

    axis: str
    name: str
    tensors: Mapping[str, torch.Tensor]
    along: Mapping[str, Route]
    anchors: Sequence[torch.Tensor] = ()


@dataclass(frozen=True, slots=True)
class Begin:
    """Begins a move, which is a later step. It brings nothing yet."""

    move: Move

    @property
    def axis(self) -> str:
        return self.move.axis


@dataclass(frozen=True, slots=True)
class Share:
    """Tensors of which every device of an axis has the same: they stay as they are, and their gradients are summed over all devices."""

    axis: str
    name: str
    tensors: Mapping[str, torch.Tensor]


Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Turn:
    """Outputs of ``inputs`` whose backward is a program of its own: ``backward(kept, directions)``, of the tensors ``kept`` until then and the
    gradients of the outputs, returns those of the inputs. Brings the outputs.
    """

    axis: str
    name: str
    inputs: Tensors
    outs: Tensors
    kept: Tensors
    backward: Callable[[Tensors, Tensors], Program]


Step = Move | Begin | Share | Turn
Program = Generator[Step, dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""Returns the outputs. All devices make the same steps."""
Inner = Callable[[Cascade, Values, Here, Kind], Program]
"""How what one device computes is run: on further axes of the mesh, or by a kernel."""
