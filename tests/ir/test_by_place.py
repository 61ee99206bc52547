"""Gradients of tables that pairs read, added up row by row: which they are, and that they are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import einfuse
from einfuse.ir import Flat, interpret
from einfuse.ir.passes import by_place, differentiate
from einfuse.ir.passes.backward import Backward, adjoint
from einfuse.runtime.given import Given
from einfuse.runtime.scatter import accumulate, contracted
from einfuse.runtime.staged import StagedProgram
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

SHAPE = Shape(batch=2, heads=4, queries=7, keys=9, widths=(3, 4), group=2)
DEFAULTS: dict[str, dict[str, Any]] = {"t5_bias": {}, "shaw": {"reach": 3}, "deberta": {"reach": 4}, "rpe": {}}
BIAS = """
attention rpe(near: int = 4) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in table[h, %s]
  s = sum[d](q * k) + table[h, min(max(j - i, -near), near) + near] where j <= i + 2
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
"""


def derived(spec: str, **params: Any) -> tuple[Flat, Backward]:
    program = einfuse.compile(spec, **params).program
    c = (program.parts[-1] if isinstance(program, StagedProgram) else program).canonical()
    floats = tuple(t.name for t in c.inputs if t.dtype == "float" and not t.param)
    return c, differentiate.run(c, floats)


def gradients(c: Flat, found: Backward) -> dict[str, torch.Tensor]:
    """Of every input, from random ones, in float64."""
    torch.manual_seed(0)
    sizes = example_sizes(c, SHAPE)
    drawn = example_inputs(c, torch.float64, 1, SHAPE)
    known = {n: x for n, x in drawn.items() if isinstance(x, torch.Tensor)}
    numbers = {t.name: t.default for t in c.inputs if t.param and t.default is not None}
    everything = interpret(replace(c, outs=tuple(x.target for x in c.einsums)), drawn, sizes)
    known |= everything | {adjoint(n): torch.randn(everything[n].shape, dtype=torch.float64) for n in c.outs}
    total: dict[str, torch.Tensor] = {}
    for step, parts in found.cascades:
        known |= interpret(step, {t.name: known[t.name] for t in step.inputs if not t.param}, sizes)
        for p in parts:
            accumulate(total, step, *contracted(p, known), Given(known, numbers, sizes))
    return total


@pytest.mark.parametrize("spec", DEFAULTS)
def test_gradients_stay_the_same(spec: str) -> None:
    c, before = derived(BIAS % 9 if spec == "rpe" else spec, **DEFAULTS[spec])
    after = by_place.run(before)
    rows = [p for _, parts in after.cascades for p in parts if "placed" in p.statement]
    assert rows, "some gradient is added up"
    assert not any({"i", "j"} <= {*p.ranks} for _, parts in after.cascades for p in parts)
    one, other = gradients(c, before), gradients(c, after)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-10)


def test_a_read_at_a_row_of_columns_is_theirs() -> None:
    _, before = derived("deberta", reach=4)
    owners = {p.input: c.name for c, parts in by_place.run(before).cascades for p in parts if "placed" in p.statement}
    assert owners == {"x_sum_pk": "deberta_3_rows", "x_sum_pq": "deberta_3_columns_j"}


@pytest.mark.parametrize("entries", ["2 * Nk", "1024"], ids=["of no known number", "many"])
def test_other_tables_are_left_to_the_host(entries: str) -> None:
    _, before = derived(BIAS % entries)
    assert by_place.run(before) is before
    _, before = derived("causal")
    assert by_place.run(before) is before
