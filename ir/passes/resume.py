"""A scan that starts from given states and gives out its last ones.

in k[B, H, N, D]                                in k[B, H, N, D] ; in S_before[B, H, D, E]
state S[d, e] = ... from 0              ->      state S[d, e] = ... from S_before[b, h, d, e]
out o                                           out o, S
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Cascade, State, Tensor
from einfuse.ir.passes import chunk
from einfuse.ir.rewrite import fresh, statements


@dataclass(frozen=True, slots=True)
class Resumed:
    """The scan, its ``states`` and the input that each of them starts from. The last ones are the last outputs, in that order."""

    cascade: Cascade
    states: tuple[State, ...]
    before: tuple[str, ...]


def run(c: Cascade) -> Resumed:
    """Requires a scan. New inputs stand behind all tensors and before the numbers."""
    scan = chunk.scan_of(c)
    assert scan is not None, "only a scan is resumed"
    states = tuple(y for y in scan.body if isinstance(y, State))
    taken = {t.name for t in c.inputs} | {r.name for r in c.ranks} | {y.target for y in statements(c)}
    names = {y.target: fresh(f"{y.target}_before", taken) for y in states}
    axes = {y.target: (*c.over, *y.ranks) for y in states}
    inputs = [Tensor(names[n], tuple(ex.size(c.rank(r).size) for r in axes[n])) for n in names]
    body = tuple(
        replace(y, init=ex.load(names[y.target], *map(ex.index, axes[y.target]))) if isinstance(y, State) else y
        for y in scan.body
    )
    whole = tuple(replace(scan, body=body) if x is scan else x for x in c.body)
    tensors, params = ([t for t in c.inputs if t.param is param] for param in (False, True))
    outs = (*(n for n in c.outs if n not in names), *names)
    return Resumed(replace(c, inputs=(*tensors, *inputs, *params), body=whole, outs=outs), states, tuple(names.values()))
