"""What a device has of the inputs before it computes: those that all devices have, its own coordinates, and all of what has none."""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import dataclass

import torch

from einfuse.distributed import routes
from einfuse.distributed.here import Axis, Here, Value, Values, coordinates, device_of, tensors
from einfuse.distributed.routes import Rows
from einfuse.distributed.steps import Move, Share, Step
from einfuse.ir import Cascade
from einfuse.ir.passes import shard
from einfuse.ir.passes.shard import Local

Tensors = dict[str, torch.Tensor]


def replicated(
    c: Cascade, axis: Axis, inputs: Values, held: Collection[str]
) -> Generator[Step, Tensors, tuple[Tensors, list[torch.Tensor]]]:
    """The inputs that all devices have, those not in ``held``; and of these the ones whose gradients wait for an exchange."""
    given = {n: x for n, x in tensors(inputs).items() if n not in held}
    whole = yield Share(axis.name, f"gradients of inputs of {c.name} that all devices have", given)
    return whole, [x for n, x in whole.items() if x is not inputs[n]]


@dataclass(frozen=True, slots=True)
class Arrived:
    """The inputs of a local cascade. ``anchors`` as in `moved`; ``waiting`` are tensors whose gradients wait for an exchange, as in `tied`."""

    values: dict[str, Value]
    anchors: list[torch.Tensor]
    waiting: list[torch.Tensor]


def arrived(c: Cascade, axis: Axis, here: Here, inputs: Values, local: Local, rows: Rows) -> Generator[Step, Tensors, Arrived]:
    """The inputs of a device with these rows of the rank of ``local``: sharded ones that the local cascade does not cut come whole."""
    held = shard.held(c, axis.ranks)
    whole, waiting = yield from replicated(c, axis, inputs, held)
    cut = dict(local.cut)
    along = {n: routes.everything(a, here.rows(axis, c.input(n).given[0][a])) for n, a in held.items() if n not in cut}
    gathered = yield Move(axis.name, f"columns of {c.name}", tensors(inputs), along)
    values = {**inputs, **whole, **gathered, **coordinates(local, rows, here, device_of(inputs))}
    return Arrived(values, list(tensors({**inputs, **whole}).values()), [*waiting, *gathered.values()])
