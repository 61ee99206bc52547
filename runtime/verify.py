"""Is a kernel right? Its error against the float64 oracle, beside the error that any evaluation in its dtype may make."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from einfuse.ir import Cascade, Expr, Scalar
from einfuse.ir.expr import FUNCTIONS
from einfuse.runtime import binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName, interpret_triton
from einfuse.runtime.bound import Trial

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


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a check. Odd on purpose: no tile divides them."""

    batch: int = 2
    heads: int = 4
    queries: int = 37
    keys: int = 53
    widths: tuple[int, ...] = (24, 40)
    group: int = 2


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
) -> Certificate:
    """Compares kernels with the oracle: values and, if asked, the gradients of every float tensor, along a random direction.

    A kernel passes when its error is at most what arithmetic of that dtype may do to the spec at these inputs (`einfuse.runtime.bound`);
    a value that is not finite where the oracle is never passes. Inputs are fresh for every ``seed``. An attention that may run in two
    forms is checked in both. On ``device`` run the kernels alone.
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
            trial = Trial(one.cascade, inputs, DTYPES[dtype], gradients, seed)
            for backend in backends:
                where = backend if device == "cpu" else f"{backend} {device}"
                if progress is not None:
                    progress(f"{name} {where} {dtype}")
                for what, found in trial.run(one.with_backend(backend), device).items():
                    seen = trial.compared(what, found)
                    rows.append(Row(name, where, dtype, what, seen.error, seen.allowed, seen.ok))
    return Certificate(tuple(rows))


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


def example_inputs(cascade: Cascade, dtype: torch.dtype, seed: int, shape: Shape) -> dict[str, torch.Tensor | Scalar]:
    """Random arguments for a cascade: normal floats, sorted small ints (document ids, lengths), mostly true booleans.

    Tensors with three axes or more are strided views, so that no kernel may take contiguity for granted.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = example_sizes(cascade, shape)
    out: dict[str, torch.Tensor | Scalar] = {}
    for t in cascade.inputs:
        if t.param:
            if t.default is None:
                out[t.name] = 7 if t.dtype == "int" else 0.5
            continue
        extents = [int(binding.evaluate(a, sizes)) for a in t.axes]
        if t.dtype == "float":
            x = torch.randn(
                [n + (k == len(extents) - 2) for k, n in enumerate(extents)], generator=generator, dtype=torch.float64
            ).to(dtype)
            out[t.name] = x.narrow(-2, 0, extents[-2]) if len(extents) > 1 else x
        elif t.dtype == "int":
            out[t.name] = torch.randint(0, 5, extents, generator=generator).sort(-1).values if extents else torch.tensor(3)
        else:
            out[t.name] = torch.rand(extents, generator=generator) > 0.2
    return out


def example_sizes(cascade: Cascade, shape: Shape) -> dict[str, int]:
    """A value for every size name: by the kind of the rank it belongs to; unknown tables are as long as the longest sequence.

    A size that is made of others comes close to what its kind says: each of the n that it is made of is the n-th root of that.
    """
    sizes: dict[str, int] = {}
    widths = iter(shape.widths * len(cascade.ranks))
    made = {r.size: r.extent for r in cascade.ranks if isinstance(r.size, str) and r.extent is not None}
    for r in cascade.ranks:
        if isinstance(r.size, str) and r.size not in sizes:
            table = {"batch": shape.batch, "head": shape.heads, "query": shape.queries, "key": shape.keys}
            about = table[r.kind] if r.kind in table else next(widths)
            parts = [e.name for e in _size_leaves(made[r.size])] if r.size in made else []
            sizes |= {n: max(1, round(about ** (1 / len(parts)))) for n in parts if n not in sizes}
            sizes[r.size] = int(binding.evaluate(made[r.size], sizes)) if r.size in made else about
    for t in cascade.inputs:
        for axis in t.axes:
            for e in _size_leaves(axis):
                if e.name not in sizes:
                    divisor = axis.op == "//" and axis.args[1] == e
                    sizes[e.name] = shape.group if divisor else max(shape.queries, shape.keys)
    return sizes


def _size_leaves(e: Expr) -> Iterator[Expr]:
    assert e.op in (*FUNCTIONS, "size", "const"), "axes are expressions over sizes"
    if e.op == "size":
        yield e
    for a in e.args:
        yield from _size_leaves(a)


def random_seed() -> int:
    """A seed for a check that should not be the same every time; printed, so that it can be repeated."""
    return random.SystemRandom().randrange(2**31)
