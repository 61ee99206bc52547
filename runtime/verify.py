"""Is a kernel right? Its error against the float64 oracle, beside the error that the eager formula makes in the same dtype."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch

from einfuse.ir import Cascade, Expr, Scalar
from einfuse.ir.expr import FUNCTIONS
from einfuse.runtime import binding
from einfuse.runtime.attention import Attention, Output
from einfuse.runtime.backends import BackendName, interpret_triton

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


DIRECTIONS = 4  # of a gradient, along which the error of the eager formula is measured: one alone may cancel by luck


def verify(
    attention: Attention,
    *,
    backends: Sequence[BackendName] = ("cpu", "triton"),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    gradients: bool = True,
    seed: int = 0,
    shape: Shape | None = None,
    factor: float = 2.0,
    progress: Callable[[str], None] | None = None,
) -> Certificate:
    """Compares kernels with the oracle, values and (if asked) the gradients of every float tensor.

    A kernel in dtype T passes when its error is at most ``factor`` times that of the interpreter run in T, plus 2 units in the last place of T
    at the scale of the result; a value that is not finite where the oracle is never passes. Inputs are fresh for every ``seed``.
    The largest of n errors is itself a draw, which of few values says little: the factor for n values is ``factor * (1 + 4 / sqrt(n))``, and
    the eager error of a gradient is the largest along several directions. An attention that may run in two forms is checked in both, each
    beside the eager formula as written.
    """
    if "triton" in backends:
        interpret_triton()
    rows: list[Row] = []
    shape = shape or Shape()
    for one in _forms(attention, shape):
        inside = _together(one, shape)
        name = attention.name if one.form == "quadratic" else f"{attention.name} (linear)"
        for dtype in dtypes:
            inputs = example_inputs(one.cascade, DTYPES[dtype], seed, inside)
            oracle = _Evaluated(one.reference, inputs, torch.float64, gradients)
            eager = _Evaluated(functools.partial(one.reference, dtype=DTYPES[dtype]), inputs, DTYPES[dtype], gradients)
            truth = oracle.results(seed)
            expected = _expected(truth, oracle, eager, seed)
            for backend in backends:
                if progress is not None:
                    progress(f"{name} {backend} {dtype}")
                found = _Evaluated(one.with_backend(backend), inputs, DTYPES[dtype], gradients).results(seed)
                rows += [_row(name, backend, dtype, what, found[what], truth[what], expected[what], factor) for what in truth]
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


def _row(
    name: str, backend: str, dtype: str, what: str, found: torch.Tensor, truth: torch.Tensor, eager: float, factor: float
) -> Row:
    finite = torch.isfinite(truth)
    scale = truth[finite].abs().max().item() if finite.any() else 0.0
    several = factor * (1 + 4 / max(1, truth.numel()) ** 0.5)
    allowed = several * eager + 2 * torch.finfo(DTYPES[dtype]).eps * scale
    error = _error(found, truth)
    return Row(name, backend, dtype, what, error, allowed, error <= allowed)


def _error(found: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest difference where the oracle is finite; inf where the other is not."""
    finite = torch.isfinite(truth)
    difference = (found.double() - truth)[finite]
    if difference.numel() == 0:
        return 0.0
    return difference.abs().max().item() if bool(torch.isfinite(difference).all()) else float("inf")


def _expected(truth: dict[str, torch.Tensor], oracle: _Evaluated, eager: _Evaluated, seed: int) -> dict[str, float]:
    """The error of the eager formula, by name; of gradients the largest along several directions."""
    found = eager.results(seed)
    errors = {what: _error(found[what], truth[what]) for what in truth}
    gradients = [what for what in truth if what.startswith("d ")]
    for other in range(seed + 1, seed + DIRECTIONS) if gradients else ():
        truth, found = oracle.results(other), eager.results(other)
        errors |= {what: max(errors[what], _error(found[what], truth[what])) for what in gradients}
    return errors


class _Evaluated:
    """One evaluation, and its gradients along any number of directions."""

    def __init__(
        self, fn: Callable[..., Output], inputs: Mapping[str, torch.Tensor | Scalar], dtype: torch.dtype, gradients: bool
    ) -> None:
        self.dtype = dtype
        self.leaves = {
            n: x.detach().to(dtype).requires_grad_(gradients) if isinstance(x, torch.Tensor) and x.is_floating_point() else x
            for n, x in inputs.items()
        }
        outs = fn(**self.leaves)
        self.outs = outs if isinstance(outs, tuple) else (outs,)

    def results(self, seed: int) -> dict[str, torch.Tensor]:
        """Outputs and gradients, by name, along the random direction of ``seed``."""
        found = {f"out {n}": o.detach() for n, o in enumerate(self.outs)}
        wanted = {n: x for n, x in self.leaves.items() if isinstance(x, torch.Tensor) and x.requires_grad}
        if wanted:
            generator = torch.Generator().manual_seed(seed)
            directions = [torch.randn(o.shape, generator=generator).to(self.dtype).to(o) for o in self.outs]
            moving = [(o, d) for o, d in zip(self.outs, directions, strict=True) if o.requires_grad]  # a count has no gradient
            outs, along = [o for o, _ in moving], [d for _, d in moving]
            leaves = list(wanted.values())
            parts = (
                torch.autograd.grad(outs, leaves, along, allow_unused=True, retain_graph=True) if outs else [None] * len(leaves)
            )
            for (n, x), g in zip(wanted.items(), parts, strict=True):
                found[f"d {n}"] = torch.zeros_like(x) if g is None else g
        return found


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
