"""Forward mode of every spec of the library: what torch's differentiation of the interpreter gives, in float64."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

import einfuse
from einfuse.runtime.backends import BackendName
from einfuse.runtime.specs import library
from einfuse.runtime.verify import Shape, example_inputs

SMALL = Shape(1, 2, 4, 6, (4, 4), 2)
QUICK = ("alibi", "causal", "deformable", "lssar", "power", "retention", "sigmoid")
SPECS = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in sorted(library())]
PRODUCT = """attention multiplied over b { rank i: query; rank j: key; rank d: feature; in q[b, i, d]; in k[b, j, d]
  o[i] = prod[j](sum[d](q * k)); out o }"""
Tensors = dict[str, torch.Tensor]
Outputs = tuple[torch.Tensor, ...]

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch.func.jvp itself


def as_tuple(outs: torch.Tensor | Outputs) -> Outputs:
    return outs if isinstance(outs, tuple) else (outs,)


def drawn(attn: einfuse.Attention, seed: int = 1) -> tuple[Tensors, Tensors, dict[str, object]]:
    """Arguments of a call: its float tensors, a direction of each, and the rest."""
    inputs = example_inputs(attn.cascade, torch.float64, seed, SMALL)
    floats = {n: x for n, x in inputs.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    return floats, {n: torch.randn_like(x) for n, x in floats.items()}, {n: x for n, x in inputs.items() if n not in floats}


def truth(attn: einfuse.Attention, floats: Tensors, along: Tensors, rest: Mapping[str, object]) -> Outputs:
    """The tangents of the oracle."""

    def formula(*points: torch.Tensor) -> Outputs:
        return as_tuple(attn.reference(**{**floats, **rest, **dict(zip(along, points, strict=True))}))  # type: ignore[arg-type]  # as drawn

    points = tuple(floats[n] for n in along)
    return torch.autograd.functional.jvp(formula, points, tuple(along.values()))[1]  # type: ignore[no-any-return]  # untyped


def same(found: torch.Tensor | Outputs, expected: Outputs) -> None:
    for a, b in zip(as_tuple(found), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SPECS)
def test_tangents_of_a_spec_are_those_of_its_formula(name: str) -> None:
    attn = einfuse.compile(name, backend="torch")
    calls = (drawn(attn, seed=n) for n in range(1, 9))
    found = ((call, truth(attn, *call)) for call in calls)
    (floats, along, rest), expected = next(
        (c, t) for c, t in found if any(bool(x.any()) for x in t)
    )  # one that masks let through
    same(attn.jvp(**floats, **rest, tangents=along)[1], expected)  # type: ignore[arg-type]  # as drawn

    if name not in QUICK:
        return

    def compiled(*points: torch.Tensor) -> Outputs:
        return as_tuple(attn(**dict(zip(floats, points, strict=True)), **rest))  # type: ignore[arg-type]  # as drawn

    same(torch.func.jvp(compiled, tuple(floats.values()), tuple(along.values()))[1], expected)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize("spec", ["causal", "retention", PRODUCT], ids=["a kernel", "a scan", "a product"])
def test_outputs_tangents_and_their_dtypes(spec: str, backend: BackendName) -> None:
    """With a kernel of the tangents and without one: the outputs are those of a call, in autocast too; the rest stays put."""
    attn = einfuse.compile(spec, backend=backend)
    floats, along, rest = drawn(attn)
    along = {"k": along["k"]}
    outs, tangents = attn.jvp(**floats, **rest, tangents=along)  # type: ignore[arg-type]  # as drawn
    same(outs, as_tuple(attn.reference(**floats, **rest)))  # type: ignore[arg-type]  # as drawn
    same(tangents, truth(attn, floats, along, rest))
    small = {n: x.float() for n, x in floats.items()}
    with torch.autocast("cpu", torch.bfloat16):
        plain = as_tuple(attn(**small, **rest))  # type: ignore[arg-type]  # as drawn
        outs, tangents = attn.jvp(**small, **rest, tangents={"k": along["k"].float()})  # type: ignore[arg-type]  # as drawn
    for o, t, p in zip(as_tuple(outs), as_tuple(tangents), plain, strict=True):
        assert o.dtype == t.dtype == p.dtype
        torch.testing.assert_close(o, p, rtol=0.02, atol=0.02)


def test_a_tangent_is_read_where_its_tensor_is() -> None:
    """A read behind a condition may be outside of its tensor elsewhere; so may that of the tangent."""
    attn = einfuse.compile(
        """attention shifted over b { rank i: query; rank j: key; rank d: feature; in q[b, i, d]; in k[b, Nk, d]
      near[j, d] = k[b, j - 2, d] if j >= 2 else 0
      o[i] = sum[j](sum[d](q * near)); out o }""",
        backend="torch",
    )
    floats, along, _ = drawn(attn)
    same(attn.jvp(**floats, tangents=along)[1], truth(attn, floats, along, {}))


def test_an_optional_input_may_be_given_as_none() -> None:
    attn = einfuse.compile("cross", backend="torch")
    floats, along, _ = drawn(attn)
    pad = torch.arange(SMALL.keys).expand(SMALL.batch, -1) < 3
    for given in ({}, {"pad": None}, {"pad": pad}):
        kept = {n: x for n, x in given.items() if x is not None}
        same(attn(**floats, **given), as_tuple(attn.reference(**floats, **kept)))  # type: ignore[arg-type]  # None is what is tried
        same(attn.jvp(**floats, **given, tangents=along)[1], truth(attn, floats, along, kept))


REFUSED: dict[str, tuple[object, type[Exception], str]] = {
    "another dtype": ({"q": torch.zeros(1, 2, 4, 4)}, TypeError, "the tangent of q must be a tensor of torch.float64, found torch.float32"),
    "a number": ({"q": 1.0}, TypeError, "the tangent of q must be a tensor of torch.float64, found float 1.0"),
    "another shape": (
        {"q": torch.zeros(1, 2, 1, 4, dtype=torch.float64)},
        ValueError,
        r"the tangent of q must have its shape \(1, 2, 4, 4\), found \(1, 2, 1, 4\)",
    ),
    "another device": (
        {"q": torch.zeros(1, 2, 4, 4, dtype=torch.float64, device="meta")},
        ValueError,
        "the tangent of q must be on cpu, found it on meta",
    ),
    "another layout": ({"q": torch.zeros(1, 2, 4, 4, dtype=torch.float64).to_sparse()}, TypeError, "the tangent of q must be of torch.strided"),
    "no dictionary": ([torch.zeros(1)], TypeError, r"tangents must be a dictionary by name \(k, q, slope, v\), found list"),
    "no input": ({"x": torch.zeros(1)}, TypeError, "tangents are for k, q, slope, v, found x"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_tangents_that_do_not_fit_are_refused(what: str) -> None:
    attn = einfuse.compile("alibi", backend="torch")
    floats, _, _ = drawn(attn)
    tangents, error, message = REFUSED[what]
    with pytest.raises(error, match=f"alibi: {message}"):
        attn.jvp(**floats, tangents=tangents)  # type: ignore[arg-type]  # wrong on purpose
