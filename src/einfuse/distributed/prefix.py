"""States of a scan: every device finds what its points do to any state, and starts from what those before it left.

S_0 = U_0                     U_r: the scan of the points of device r from zero (of device 0: from where the spec starts)
S_r = M_r S_(r-1) + U_r       M_r: what those points do to the state before them
"""

from __future__ import annotations

import string
from collections.abc import Generator
from dataclasses import replace

import torch

from einfuse.distributed import routes
from einfuse.distributed.exchange import once, tied
from einfuse.distributed.here import (
    Axis,
    Here,
    Values,
    axes_of,
    consecutive,
    device_of,
    only,
    size_of,
)
from einfuse.distributed.inputs import arrived
from einfuse.distributed.steps import Inner, Move, Program, Step
from einfuse.ir import Cascade, Scan, SpecError
from einfuse.ir import expr as ex
from einfuse.ir.passes import resume, shard, transition
from einfuse.ir.passes.resume import Resumed
from einfuse.ir.passes.shard import Local
from einfuse.ir.passes.transition import Transition
from einfuse.ir.rewrite import prune

States = dict[str, torch.Tensor]


def rank_of(c: Cascade, axis: Axis) -> str:
    """The scanned rank. Raises SpecError where the update is not affine in the state, or something reads other points' results."""
    if not isinstance(c, Scan) or axis.ranks != (c.fold.rank,):
        raise SpecError(f"{c.name} is no scan over {' and '.join(f'`{r}`' for r in axis.ranks)}", c.loc)
    fold = c.fold
    reason = shard.obstacle(c, fold.rank, scanned=True)
    if reason is not None:
        raise SpecError(f"{c.name} cannot hand states on along `{fold.rank}`: {reason[0]}", reason[1])
    transition.run(c)
    return fold.rank


def run(c: Cascade, axis: Axis, here: Here, inputs: Values, inner: Inner) -> Program:
    """The outputs: of each its own points, and last states whole."""
    me, size, device = here.at[axis.name].rank, here.at[axis.name].size, device_of(inputs)
    held = shard.held(c, axis.ranks)
    (rank,) = axis.ranks
    local, resumed, transitions = here.memo(("prefix", c.digest, rank), lambda: _derived(c, rank, held))
    every = here.layouts[axis.name][size_of(c, rank)]
    if not consecutive(torch.cat(list(every))):
        raise ValueError(
            f"{c.name}: states are handed on from device to device, so their points have to be one after the other"
        )
    mine = every[me]
    given = yield from arrived(c, axis, here, inputs, local, mine)
    values = given.values
    known = here.sized(**{local.rows: len(mine)})
    names = [y.target for y in resumed.states]
    last = any(n in names for n in c.outs)
    outs: dict[str, torch.Tensor] = {}
    used = me < size - 1 or last
    zeros = {y.target: _zeros(c, (*c.over, *y.ranks), known, device) for y in resumed.states}
    left = zeros
    if me == 0:
        first = replace(local.cascade, outs=(*(n for n in c.outs if n not in names), *names))
        outs = yield from inner(first, only(first, values), known, "states")
        left = {n: outs[n] for n in names}
    elif used:
        alone = here.memo(("left", c.digest, rank), lambda: prune(replace(resumed.cascade, outs=tuple(names))))
        started = dict(zip(resumed.before, zeros.values(), strict=True))
        left = yield from inner(alone, only(alone, {**values, **started}), known, "states")
    sent = {n: x[None] for n, x in left.items()}
    for t in transitions:
        if t.cascade is not None:
            found = yield from _transition(t, t.cascade, values, known, inner, device, 0 < me and used)
            sent[f"M {t.state}"] = found[None]
    wide = {n: x.to(left[names[0]].dtype) for n, x in sent.items()}
    side = {n: routes.stacked(size, to=lambda s, d, n=n: (d > s or last) and not (n[:2] == "M " and s == 0)) for n in wide}  # type: ignore[misc]
    left_by = yield Move(axis.name, f"states of {c.name}", wide, side, given.anchors)
    if me > 0:
        before = _after(me, left_by, c, resumed, transitions)
        more = dict(zip(resumed.before, before.values(), strict=True))
        outs = yield from inner(resumed.cascade, only(resumed.cascade, {**values, **more}), known, "states")
    if last:
        outs |= {n: once(c.name, me == 0, x) for n, x in _after(size, left_by, c, resumed, transitions).items()}
    return tied(c.name, {n: outs[n] for n in c.outs}, [*given.waiting, *left_by.values()])


def _derived(c: Cascade, rank: str, held: dict[str, int]) -> tuple[Local, Resumed, tuple[Transition, ...]]:
    local = shard.run(c, rank, given=held)
    assert isinstance(local.cascade, Scan), "some points of a scan are one"
    return local, resume.run(local.cascade), transition.run(local.cascade)


def _zeros(c: Cascade, ranks: tuple[str, ...], here: Here, device: torch.device) -> torch.Tensor:
    return torch.zeros([here.extent(ex.size(c.rank(r).size)) for r in ranks], device=device, dtype=here.wide)


def _transition(
    t: Transition, c: Cascade, values: Values, here: Here, inner: Inner, device: torch.device, used: bool
) -> Generator[Step, States, torch.Tensor]:
    """M of the points of this device; zeros where nobody asks for it."""
    if used:
        found = yield from inner(c, only(c, values), here, "states")
        return found[t.state]
    return _zeros(c, axes_of(c, t.state), here, device)


def _after(count: int, every: States, c: Cascade, resumed: Resumed, transitions: tuple[Transition, ...]) -> States:
    """The states after the points of the first so many devices."""
    out = {y.target: every[y.target][0] for y in resumed.states}
    for r in range(1, count):
        for y, t in zip(resumed.states, transitions, strict=True):
            x = out[y.target]
            if t.cascade is not None:
                x = _applied(every[f"M {y.target}"][r], x, len(c.over), y.ranks, t)
            out[y.target] = x + every[y.target][r]
    return out


def _applied(m: torch.Tensor, x: torch.Tensor, over: int, ranks: tuple[str, ...], t: Transition) -> torch.Tensor:
    """``M x`` along the mixed ranks, point by point along the others."""
    letters = iter(string.ascii_letters)
    ambient = "".join(next(letters) for _ in range(over))
    to = {r: next(letters) for r in ranks}
    from_ = {r: next(letters) if r in t.mixed else to[r] for r in ranks}
    left = "".join(to[r] for r in t.ranks) + "".join(from_[r] for r in t.mixed)
    given, made = ("".join(by[r] for r in ranks) for by in (from_, to))
    return torch.einsum(f"{ambient}{left},{ambient}{given}->{ambient}{made}", m, x)
