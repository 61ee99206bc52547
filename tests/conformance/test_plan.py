"""Plans as an IR: their text reads back, their rules catch what breaks them, and they mean what their cascades mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from plans import CASES, Case

from einfuse.codegen import plan as kp
from einfuse.codegen.plan.interpret import interpret


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("storage", ["f32", "bf16"])
def test_a_plan_reads_back(name: str, storage: str) -> None:
    plan = CASES[name](storage=storage).plan
    assert kp.read(kp.show(plan)) == plan


def test_the_text_of_a_plan() -> None:
    lines = kp.show(CASES["softmax"]().plan).splitlines()
    assert lines[0] == "kernel softmax compute f32 narrow f32"
    assert "  tile i = Nq by 32" in lines
    assert "    qq : float[i, d] = load q[b, h, i, d]".replace("qq", "q") in lines
    assert "    phase full from full_lo to full_hi" in lines
    assert "      next m_new_2, l_new_2, acc_new_2" in lines
    assert "    store m[b, h, i] = m" in lines


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kernel x compute f32", "line 1 of a plan: expected kernel"),
        ("kernel x compute f32 narrow f32\n  region\n    y : int = map copy(z)", "line 3 of a plan: no value is called z"),
        ("kernel x compute f32 narrow f32\n  region\n    y = 3", "line 3 of a plan: expected an operation, a region or a fold"),
    ],
)
def test_a_text_that_is_no_plan(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        kp.read(text)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sizes", [{}, {"Nq": 1}, {"B": 1, "H": 2, "Hk": 1}])
def test_a_plan_means_what_its_cascade_means(name: str, sizes: dict[str, int]) -> None:
    case: Case = CASES[name](storage="f64")
    sizes = {**case.sizes, **({"Nk": sizes["Nq"]} if name == "tabulated" and "Nq" in sizes else {}), **sizes}
    if name == "softmax" and "Hk" in sizes:
        case.params["group"] = sizes["H"] // sizes["Hk"]
    elif name != "softmax":
        sizes.pop("Hk", None)
    inputs, outputs = case.tensors(sizes), case.outputs(sizes)
    kp.verify(case.plan)
    interpret(case.plan, {**inputs, **outputs}, case.params, sizes)
    for n, expected in case.reference(inputs, case.params).items():
        torch.testing.assert_close(outputs[n], expected, rtol=1e-12, atol=1e-12)


AnyOp = TypeVar("AnyOp", bound=kp.Op)


def operation(plan: kp.KernelPlan, kind: type[AnyOp], change: Callable[[AnyOp], kp.Op]) -> kp.KernelPlan:
    """The plan with its first operation of a kind, anywhere, changed."""
    done = False

    def changed(region: kp.Region) -> kp.Region:
        nonlocal done
        out = []
        for op in region:
            out.append(change(op) if isinstance(op, kind) and not done else op)
            done = done or isinstance(op, kind)
        return tuple(out)

    steps = tuple(
        replace(s, phases=tuple(replace(p, body=changed(p.body)) for p in s.phases)) if isinstance(s, kp.Fold) else changed(s)
        for s in plan.steps
    )
    return replace(plan, steps=steps)


FAULTS: dict[str, tuple[Callable[[kp.KernelPlan], kp.KernelPlan], str]] = {
    "read before": (lambda p: replace(p, steps=p.steps[1:]), "defined before it is read"),
    "defined twice": (lambda p: replace(p, steps=(p.steps[0], *p.steps)), "is defined once"),
    "another type": (
        lambda p: operation(p, kp.Load, lambda op: replace(op, out=replace(op.out, dtype="int"))),
        "read as defined",
    ),
    "no such rank": (
        lambda p: operation(p, kp.Load, lambda op: replace(op, out=replace(op.out, dims=("i", "z")))),
        "a load spans the ranks of its indices",
    ),
    "a tensor that is not there": (lambda p: replace(p, tensors=p.tensors[1:]), "q is a tensor of the plan"),
    "too few axes": (lambda p: replace(p, tensors=(replace(p.tensors[0], axes=3), *p.tensors[1:])), "q has 3 axes"),
    "an input written": (lambda p: replace(p, tensors=tuple(replace(t, out=False) for t in p.tensors)), "o is an output"),
    "a number that is not there": (lambda p: replace(p, params=()), "a number is declared"),
    "a size that is not there": (lambda p: replace(p, sizes=("B",)), "a size is declared"),
    "a sum over the wrong rank": (
        lambda p: operation(p, kp.Reduce, lambda op: replace(op, rank="e")),
        "a reduction is over a rank of its operand",
    ),
    "a product over the wrong rank": (
        lambda p: operation(p, kp.Dot, lambda op: replace(op, rank="i")),
        "a product shares the rank that it sums over",
    ),
    "an update too few": (
        lambda p: replace(
            p,
            steps=tuple(
                replace(s, states=(*s.states, replace(s.states[0], value=replace(s.states[0].value, name="one_more"))))
                if isinstance(s, kp.Fold)
                else s
                for s in p.steps
            ),
        ),
        "a phase over j updates every state",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_plan_is_found(fault: str) -> None:
    change, message = FAULTS[fault]
    plan = CASES["softmax"]().plan
    kp.verify(plan)
    with pytest.raises(AssertionError, match=f"plan softmax: .*{message}"):
        kp.verify(change(plan))


def test_an_index_outside_its_tensor_is_no_value() -> None:
    case = CASES["sigmoid"]()
    plan = operation(case.plan, kp.Load, lambda op: replace(op, clamp=()))
    inputs, outputs = case.tensors(case.sizes), case.outputs(case.sizes)
    inputs["slope"] = inputs["slope"][:1]
    with pytest.raises(IndexError, match=r"axis 0 has 1 points, read from 1 to 1: slope : float = load slope\[h\]"):
        interpret(plan, {**inputs, **outputs}, case.params, case.sizes)
