"""Values of rows that a kernel of their own makes: what kernels over pairs read, and that the gradients are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import einfuse
from einfuse.ir import Cascade, Einsum, interpret
from einfuse.ir.expr import walk
from einfuse.ir.passes import differentiate, row_values
from einfuse.ir.passes.backward import Backward, adjoint
from einfuse.ir.text import parse, show
from einfuse.runtime.verify import Shape, example_inputs, example_sizes

SHAPE = Shape(batch=2, heads=2, queries=7, keys=9, widths=(3, 4), group=1)


def backward(spec: str) -> tuple[Cascade, Backward]:
    c = einfuse.compile(spec).program.canonical()
    floats = tuple(t.name for t in c.inputs if t.dtype == "float" and not t.param)
    return c, differentiate.run(c, floats)


def outputs(c: Cascade, found: Backward) -> dict[str, torch.Tensor]:
    """Every gradient statement of a backward, from random inputs, in float64."""
    torch.manual_seed(0)
    sizes = example_sizes(c, SHAPE)
    known = dict(example_inputs(c, torch.float64, 1, SHAPE))
    statements = {x.target: x for x in c.einsums}
    everything = interpret(replace(c, outs=tuple(statements)), known, sizes)
    known |= everything
    known |= {adjoint(n): torch.randn(everything[n].shape, dtype=torch.float64) for n in c.outs}
    out: dict[str, torch.Tensor] = {}
    for step, parts in found.cascades:
        made = interpret(step, {t.name: known[t.name] for t in step.inputs}, sizes)
        known |= made
        out |= {p.statement: made[p.statement] for p in parts}
    return out


@pytest.mark.parametrize("spec", ["causal", "alibi", "sink", "l2", "entmax15", "cosine", "lse", "differential"])
def test_gradients_stay_the_same(spec: str) -> None:
    c, before = backward(spec)
    after = row_values.run(before)
    one, other = outputs(c, before), outputs(c, after)
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec", ["causal", "softmax1"])  # the second divides by what is made of a statement of rows
def test_no_pair_divides_by_what_belongs_to_a_row(spec: str) -> None:
    _, before = backward(spec)
    first, *rest = (c for c, _ in row_values.run(before).cascades)
    assert "inverse" in first.outs
    for c in rest:
        assert "inverse" in {t.name for t in c.inputs}
        for x in c.body:
            assert isinstance(x, Einsum)
            divided = [e for e in walk(x.map) if e.op == "/" and any(y.op == "load" for y in walk(e.args[1]))]
            assert divided == []


def test_its_cascades_read_back_from_their_text() -> None:
    _, before = backward("causal")
    for c, _ in row_values.run(before).cascades:
        assert parse(show(c)) == c


def test_a_backward_without_such_values_is_left_alone() -> None:
    _, before = backward("sigmoid")
    assert row_values.run(before) is before
