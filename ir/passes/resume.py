"""A scan that starts from given states and gives out its last ones.

in k[B, H, N, D]                                in k[B, H, N, D] ; in S_before[B, H, D, E]
state S[d, e] = ... from 0              ->      state S[d, e] = ... from S_before[b, h, d, e]
out o                                           out o, S
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Scan, State, Tensor
from einfuse.ir.rewrite import fresh, map_folds, statements


@dataclass(frozen=True, slots=True)
class Resumed:
    """The scan, its ``states`` and the input that each of them starts from. The last ones are the last outputs, in that order."""

    cascade: Scan
    states: tuple[State, ...]
    before: tuple[str, ...]


def run(c: Scan) -> Resumed:
    """New inputs stand behind all tensors and before the numbers."""
    scan = c.fold
    states = scan.states
    taken = {t.name for t in c.inputs} | {r.name for r in c.ranks} | {y.target for y in statements(c)}
    names = {y.target: fresh(f"{y.target}_before", taken) for y in states}
    axes = {y.target: (*c.over, *y.ranks) for y in states}
    inputs = [Tensor(names[n], tuple(ex.size(c.rank(r).size) for r in axes[n])) for n in names]

    def started(y: State) -> State:
        return replace(y, init=ex.load(names[y.target], *map(ex.index, axes[y.target])))

    whole = map_folds(c, lambda f: f.mapped(lambda y: y, started))
    tensors, params = ([t for t in c.inputs if t.param is param] for param in (False, True))
    outs = (*(n for n in c.outs if n not in names), *names)
    return Resumed(replace(whole, inputs=(*tensors, *inputs, *params), outs=outs), states, tuple(names.values()))
