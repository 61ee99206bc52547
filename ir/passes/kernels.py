"""Which cascades a spec becomes before any is fused: those of one kernel each, in the order in which a call runs them.

sel[i, n] = topk[w] g[i, w]                        1: g, which is ranked
s[i, j] = ... where j // 64 in sel[i]      ->      2: the rest, which reads the list as an input
o[i, e] = ...
"""

from __future__ import annotations

from collections.abc import Iterator

from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Cascade, Flat
from einfuse.ir.passes import choose, look_up, stages


def kernels(cascade: Cascade) -> tuple[Cascade, ...]:
    """What is ranked, and the stages of the rest. A scan is one, and so is what is fused. Raises SpecError where no kernels compute it."""
    if not isinstance(cascade, Flat):
        return (cascade,)
    chosen = choose.run(cascade)
    if chosen is None:
        return stages.run(look_up.run(cascade))  # what is looked up in tables is a stage of its own
    ranked = (k for step in chosen.steps if isinstance(step, choose.Scores) for k in _ranked(step))
    return (*ranked, *kernels(chosen.rest))


def _ranked(step: choose.Scores) -> Iterator[Cascade]:
    """The kernels that compute what a step ranks; none where it is interpreted."""
    for way in step.ways:
        try:
            yield from kernels(way.computed)
        except SpecError:
            continue
        return
