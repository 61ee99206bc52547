"""Is a kernel right? Its error against the float64 oracle, beside the error that any evaluation in its dtype may make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from einfuse.ir.passes.choose import Scores
from einfuse.runtime import binding, choice
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName, interpret_triton
from einfuse.runtime.bound import Difference, Trial
from einfuse.runtime.examples import Shape as Shape
from einfuse.runtime.examples import example_inputs as example_inputs
from einfuse.runtime.examples import example_sizes as example_sizes

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: ``what`` is an output or ``d name``; it is right when ``error <= allowed`` (largest absolute differences)."""

    name: str
    backend: str
    dtype: str
    what: str
    error: float
    allowed: float
    ok: bool


@dataclass(frozen=True, slots=True)
class Certificate:
    """Every comparison that was made; machine-readable by `as_dict`."""

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        return all(r.ok for r in self.rows)

    def as_dict(self) -> dict[str, object]:
        return {"ok": self.ok, "rows": [asdict(r) for r in self.rows]}


def verify(
    attention: Attention,
    *,
    backends: Sequence[BackendName] = ("cpu", "triton"),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    gradients: bool = True,
    seed: int = 0,
    shape: Shape | None = None,
    device: str = "cpu",
    progress: Callable[[str], None] | None = None,
    brief: bool = False,
) -> Certificate:
    """Compares kernels with the oracle: values and, if asked, the gradients of every float tensor, along a random direction.

    A kernel passes when its error is at most what arithmetic of that dtype may do to the spec at these inputs (`einfuse.runtime.bound`);
    a value that is not finite where the oracle is never passes. Inputs are fresh for every ``seed``. An attention that may run in two
    forms is checked in both. On ``device`` run the kernels alone. A ``brief`` check comes to the same verdicts with as little work as shows
    them: the errors that it says are allowed are the least that are.
    """
    if "triton" in backends and device == "cpu":
        interpret_triton()
    rows: list[Row] = []
    shape = shape or Shape()
    for one in _forms(attention, shape):
        inside = _together(one, shape)
        name = attention.name if one.form == "quadratic" else f"{attention.name} (linear)"
        for dtype in dtypes:
            inputs = example_inputs(one.cascade, DTYPES[dtype], seed, inside)
            trial = Trial(one.cascade, inputs, DTYPES[dtype], gradients, seed, brief)
            for backend in backends:
                where = backend if device == "cpu" else f"{backend} {device}"
                if progress is not None:
                    progress(f"{name} {where} {dtype}")
                for what, seen in _compared(trial, one.with_backend(backend), device):
                    rows.append(Row(name, where, dtype, what, seen.error, seen.allowed, seen.ok))
    return Certificate(tuple(rows))


def _compared(trial: Trial, attention: Attention, device: str) -> Iterator[tuple[str, Difference]]:
    """Every result of an attention beside the truth.

    One that chooses is checked in two halves: each list against the scores of the oracle, which knows the lists before it as the
    kernels made them; then the rest with all lists as they are. A choice between values that rounding cannot tell apart is no fault.
    """
    if attention.selection is None:
        yield from ((what, trial.compared(what, found)) for what, found in trial.run(attention, device).items())
        return
    tensors, numbers = binding.arguments(attention.cascade, (), trial.inputs)
    known = attention.selection({**{n: x.to(device) for n, x in tensors.items()}, **numbers})
    for step in attention.selection.chosen.steps:
        if isinstance(step, Scores):
            yield f"choice {step.target}", choice.compared(step, known, trial)
    rest = attention.selection.rest
    mine = {t.name: known[t.name] for t in rest.cascade.inputs}
    half = replace(trial, cascade=rest.cascade, inputs=mine)
    yield from ((what, half.compared(what, found)) for what, found in half.run(rest, device).items())
    reader, mine = attention.selection.reader({**{n: x.to(device) for n, x in tensors.items()}, **numbers})
    if reader is not rest:
        half = replace(trial, cascade=reader.cascade, inputs=mine)
        yield from ((f"{what} by lists", half.compared(what, found)) for what, found in half.run(reader, device).items())


def _forms(attention: Attention, shape: Shape) -> list[Attention]:
    """The attention in every form that a call at this shape may choose."""
    if attention.form != "auto":
        return [attention]
    quadratic = attention.with_form("quadratic")
    if attention.forms.found is None:
        return [quadratic]
    linear = attention.with_form("linear")
    sizes = example_sizes(attention.cascade, _together(linear, shape))
    return [quadratic, linear] if attention.forms.fits(sizes) is None else [quadratic]


def _together(attention: Attention, shape: Shape) -> Shape:
    """The shape, with as many keys as queries where the form needs that."""
    found = attention.forms.found
    return replace(shape, keys=shape.queries) if attention.form == "linear" and found is not None and found.causal else shape
