"""One device as several: the parts of a sequence that it holds, whose programs run side by side and make each exchange together.

So many parts make the same numbers on any devices: a part computes what it would on a device of its own, from the same tensors, and what
parts bring is added up in their order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from einfuse.distributed import programs
from einfuse.distributed.exchange import Begun, Turned, arrived, begin, shared
from einfuse.distributed.here import At, Axis, Here, Values, axes_of, tensors
from einfuse.distributed.steps import Begin, Move, Program, Share, Step, Tensors, Turn
from einfuse.distributed.transport import Transport
from einfuse.ir import Cascade
from einfuse.ir.passes.shard import held

Transports = Mapping[str, Transport]
Made = dict[str, torch.Tensor]


def run(c: Cascade, axes: Sequence[programs.Route], here: Here, transports: Transports, inputs: Values) -> Made:
    """The outputs of this device: those of its parts, one after the other."""
    axis = next((a for a, _ in axes if here.at[a.name].size > transports[a.name].size), None)
    if axis is None:
        return _lockstep([programs.run(c, axes, here, inputs)], transports, None)[0]
    own = of_device(here.at[axis.name].size, transports[axis.name])
    at = [{**here.at, axis.name: At(p, here.at[axis.name].size)} for p in own]
    given = _cut(c, axis, here, inputs, own)
    made = _lockstep(
        [programs.run(c, axes, replace(here, at=a), x) for a, x in zip(at, given, strict=True)], transports, axis.name
    )
    out = {}
    for n in c.outs:
        along = next((k for k, r in enumerate(axes_of(c, n)) if r in axis.ranks), None)
        out[n] = made[0][n] if along is None else torch.cat([x[n] for x in made], along)
    return out


def of_device(count: int, transport: Transport) -> range:
    """Those of so many parts that a device holds."""
    each = count // transport.size
    return range(transport.rank * each, (transport.rank + 1) * each)


def _cut(c: Cascade, axis: Axis, here: Here, inputs: Values, own: range) -> list[Values]:
    """The inputs of every part: of those that lie along the axis its own rows, laid out as they would be on a device of its own."""
    out = [dict(inputs) for _ in own]
    for n, a in held(c, axis.ranks).items():
        rows = here.rows(axis, c.input(n).given[0][a])
        for values, x in zip(out, tensors(inputs)[n].split([len(rows[p]) for p in own], a), strict=True):
            values[n] = x.contiguous()
    return [*out]


def _lockstep(running: Sequence[Program], transports: Transports, axis: str | None) -> list[Made]:
    """What every program returns, all of which make the same steps; ``axis`` is that of the parts."""
    found: Sequence[Made | None] = [None] * len(running)
    begun: dict[int, Begun] = {}  # by the move of the first program
    while True:
        steps, done = list[Step](), list[Made]()
        for p, x in zip(running, found, strict=True):
            try:
                steps.append(next(p) if x is None else p.send(x))
            except StopIteration as end:
                done.append(end.value)
        if not steps:
            return done
        assert not done, "parts make the same steps"
        found = _performed(steps, transports, axis, begun)


def _performed(steps: Sequence[Step], transports: Transports, axis: str | None, begun: dict[int, Begun]) -> list[Made]:
    """A step of every part in one exchange, between the parts or with other devices that have the same parts."""
    turns = [s for s in steps if isinstance(s, Turn)]
    if turns:
        return _turned(turns, transports, axis)
    transport, between = transports[steps[0].axis], steps[0].axis == axis or len(steps) == 1
    shares = [s for s in steps if isinstance(s, Share)]
    if shares:
        return shared(transport, shares[0].name, [s.tensors for s in shares]) if between else _shared_once(shares, transport)
    moves = [s.move if isinstance(s, Begin) else s for s in steps if isinstance(s, Begin | Move)]
    if between:
        given, along = [s.tensors for s in moves], moves[0].along
    else:
        given = [{f"{k:04d} {n}": s.tensors[n] for k, s in enumerate(moves) for n in s.along}]
        along = {f"{k:04d} {n}": r for k, s in enumerate(moves) for n, r in s.along.items()}
    anchors = [x for m in moves for x in m.anchors]
    under_way = begun.pop(id(moves[0]), None) or begin(transport, moves[0].name, given, along, anchors)
    if isinstance(steps[0], Begin):
        begun[id(moves[0])] = under_way
        return [{} for _ in steps]
    found = arrived(under_way)
    return found if between else [{n: found[0][f"{k:04d} {n}"] for n in s.along} for k, s in enumerate(moves)]


def _turned(turns: Sequence[Turn], transports: Transports, axis: str | None) -> list[Made]:
    def backward(kept: Sequence[Tensors], directions: Sequence[Tensors]) -> Sequence[Tensors]:
        running = [t.backward(k, d) for t, k, d in zip(turns, kept, directions, strict=True)]
        return _lockstep(running, transports, axis)

    each = [t.inputs for t in turns], [t.outs for t in turns], [t.kept for t in turns]
    return Turned(turns[0].name, *each, backward).apply()


def _shared_once(steps: Sequence[Share], transport: Transport) -> list[Made]:
    """What several parts have is one tensor, of which there is one sum."""
    known: dict[int, tuple[str, torch.Tensor]] = {}
    for s in steps:
        for n in sorted(s.tensors):
            known.setdefault(id(s.tensors[n]), (f"{len(known):04d}", s.tensors[n]))
    found = shared(transport, steps[0].name, [dict(known.values())])[0]
    return [{n: found[known[id(x)][0]] for n, x in s.tensors.items()} for s in steps]
