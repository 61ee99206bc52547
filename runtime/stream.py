"""Token by token with constant memory: one step of a recurrence, or of a one-pass attention of a fixed query over keys that keep coming.

A scan is run again from the states it ended with. A one-pass attention has states too, those of its derived fold (for softmax the
maximum, the sum and the weighted sum of values); the states of the new keys are merged with the old ones by the derived merge (Feng et al.,
Attention as an RNN, 2024). Nothing here knows a normaliser.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from einfuse.ir import Cascade, Expr, Scalar, Scan, SpecError, State, const, size
from einfuse.ir.expr import walk
from einfuse.ir.passes import resume
from einfuse.ir.passes.resume import Resumed
from einfuse.runtime import binding
from einfuse.runtime.apart import apart
from einfuse.runtime.binding import extent_of
from einfuse.runtime.given import Given
from einfuse.runtime.outputs import accumulation
from einfuse.runtime.parts import PartialState

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention, Output

States = tuple[torch.Tensor, ...]


def advance(
    attention: Attention,
    state: States | PartialState | None,
    args: tuple[torch.Tensor, ...],
    kwargs: Mapping[str, torch.Tensor | Scalar],
) -> tuple[Output, States | PartialState]:
    """The outputs for the next points, and the states after them; ``state`` None: these are the first."""
    if isinstance(attention.cascade, Scan):
        if isinstance(state, PartialState):
            raise TypeError(f"{attention.name} is a scan: its state is a tuple of tensors, found a PartialState")
        return _scanned(attention, attention.cascade, state, args, kwargs)
    if state is not None and not isinstance(state, PartialState):
        raise TypeError(f"{attention.name} goes on from a PartialState of its own, found {type(state).__name__}")
    _positionless(attention.cascade, attention.split.rank)
    new = attention.state(*args, keys=None, **kwargs)
    known = new if state is None else attention.merge(state, new)
    return attention.finalise(known), known


def _positionless(cascade: Cascade, rank: str) -> None:
    """Raises SpecError where the coordinate of ``rank`` is used but to read a tensor at it, or its size.

    What is read at it lies along its size, and what does is read nowhere else: the part of a step has other points at the same places.
    """

    extent = size(cascade.rank(rank).size)
    axes = {t.name: t.axes for t in cascade.inputs}

    def apart(e: Expr) -> str | None:
        """How an input is read at the coordinate on another axis, or on its axis at another coordinate."""
        for x in walk(e):
            for a, axis in zip(x.args, axes.get(str(x.name), ()), strict=False) if x.op == "load" else ():
                mine = a.op == "index" and a.name == rank
                if mine != (axis == extent):
                    return (
                        f"reads {x.name} by the position along `{rank}`"
                        if mine
                        else f"reads other points of {x.name} than `{rank}`"
                    )
        return None

    def uses(e: Expr, plain: bool = False) -> bool:
        if e.op == "index":
            return e.name == rank and not plain
        return any(uses(a, e.op == "load" and a.op == "index") for a in e.args)

    for x in cascade.body:
        for y in dict.fromkeys((x, *x.lines)):  # a fold has expressions of its own
            if extent.op == "size" and any(x == extent for e in y.expressions for x in walk(e)):
                raise SpecError(
                    f"{cascade.name} depends on the number of points along `{rank}`, which grows with every step",
                    y.loc,
                    "give the number as a parameter",
                )
            if any(uses(e) for e in y.expressions):
                raise SpecError(
                    f"{cascade.name} depends on the position along `{rank}`, which a step does not know",
                    y.loc,
                    "give positions as an input, or use a spec without them",
                )
            if how := next((n for e in y.expressions if (n := apart(e))), None):
                raise SpecError(f"{cascade.name} {how}, which a step does not know", y.loc)


# -- scans -----------------------------------------------------------------------------------------------------------------------


def resumed(cascade: Scan) -> Resumed:
    """The scan from given states. Raises SpecError where it depends on positions, which a step does not know."""
    _positionless(cascade, cascade.fold.rank)
    return resume.run(cascade)


def _scanned(
    attention: Attention,
    scan: Scan,
    state: States | None,
    args: tuple[torch.Tensor, ...],
    kwargs: Mapping[str, torch.Tensor | Scalar],
) -> tuple[Output, States]:
    from einfuse.runtime.attention import Attention as Compiled

    found = resumed(scan)
    cascade, states = found.cascade, found.states
    if attention.resumed is None:
        attention.resumed = apart(lambda: Compiled(cascade, attention.backend, attention.strict, inner=True))
    call = Given.called(scan, args, kwargs)  # the states are wider than these, also where autocast is on
    if state is None:
        state = _first(scan, states, call.tensors)
    if len(state) != len(states):
        raise ValueError(f"{attention.name} has {len(states)} states, found {len(state)}")
    outs = attention.resumed(**call.inputs, **dict(zip(found.before, state, strict=True)))
    every = outs if isinstance(outs, tuple) else (outs,)
    named = dict(zip(cascade.outs, every, strict=True))
    public = tuple(named[n] for n in attention.cascade.outs)
    return (public[0] if len(public) == 1 else public), tuple(named[y.target] for y in states)


def _first(cascade: Scan, states: tuple[State, ...], tensors: Mapping[str, torch.Tensor]) -> States:
    """What the scan starts from."""
    sizes: Mapping[str, int] = binding.sizes(cascade, tensors)  # type: ignore[assignment]
    wide, device = accumulation(tensors.values()), next(iter(tensors.values())).device
    out = []
    for y in cascade.fold.states:
        init = y.init or const(0.0)
        if init.op != "const":
            raise SpecError(f"{y.target} starts from an input: pass its first value as the state", y.loc)
        shape = [extent_of(cascade, r, sizes) for r in (*cascade.over, *y.ranks)]
        out.append(torch.full(shape, float(init.value or 0.0), dtype=wide, device=device))
    return tuple(out)
