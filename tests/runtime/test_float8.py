"""Floats of 8 bits are read as the numbers that they stand for: a call gives the bits of one whose tensors were widened before."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.ir import Scalar
from einfuse.runtime.backends import BackendName
from einfuse.runtime.cross import cross_compile
from einfuse.runtime.examples import Shape, example_inputs

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
BACKENDS: list[BackendName] = ["torch", "cpu", "triton", "loops", "pallas"]
ADDED = """attention added over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in x[b, h, i, e]
  in w[b, h, j]
  o[i, e] = x + sum[j](w) + sum[d](q)
  out o
}"""
Inputs = dict[str, torch.Tensor | Scalar]


def widened(given: Mapping[str, torch.Tensor | Scalar], dtype: torch.dtype) -> Inputs:
    """The same with floats of 8 bits as ``dtype``, which has all of their numbers."""
    small = {n: x.to(dtype) for n, x in given.items() if isinstance(x, torch.Tensor) and x.dtype in FLOAT8}
    return {**given, **small}


def results(attention: einfuse.Attention, given: Inputs, dtype: torch.dtype) -> list[torch.Tensor]:
    """The output, and the gradients of the tensors in ``dtype``."""
    given = {n: x.clone().requires_grad_() if n == "q" and isinstance(x, torch.Tensor) else x for n, x in given.items()}
    out = attention(**given)
    out = out if isinstance(out, torch.Tensor) else out[0]
    assert out.dtype == dtype
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    q = given["q"]
    assert isinstance(q, torch.Tensor)
    return [out, *torch.autograd.grad((out * weights).sum(), [q])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_each_of_256_numbers_is_itself(dtype: torch.dtype, backend: BackendName) -> None:
    attention, bits = einfuse.compile(ADDED, backend=backend), torch.arange(256).to(torch.uint8)
    rows, columns = bits.reshape(8, 32).view(dtype), bits.reshape(32, 8).view(dtype).T  # rows that lie together, and apart
    assert rows.isnan().any()
    assert ((rows.float().abs() < torch.finfo(dtype).tiny) & (rows.float() != 0)).any()
    for x in (rows, columns):
        out = attention(torch.zeros(1, 1, 8, 4), x[None, None], torch.zeros(1, 1, 8))
        assert isinstance(out, torch.Tensor)
        torch.testing.assert_close(out[0, 0], x.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "backend", "which"),
    [
        pytest.param(name, b, (k + m) % 2, marks=[pytest.mark.slow] * (b != "torch"))
        for k, name in enumerate(("alibi", "delta", "moba"))
        for m, b in enumerate(BACKENDS[:3])
    ],
)
def test_a_call_is_that_of_what_they_stand_for(name: str, backend: BackendName, which: int) -> None:
    """Every spec on every back end; each of them, and every back end, in both types of 8 bits."""
    attention, short = einfuse.compile(name, backend=backend), FLOAT8[which]
    dtype = (torch.bfloat16, torch.float32)[which]
    given = example_inputs(attention.cascade, dtype, which, Shape(1, 4, 21, 35, (16, 12), 2))
    given |= {m: given[m].to(short) for m in ("k", "v", "slope") if m in given}  # type: ignore[union-attr]  # tensors
    one, other = (results(attention, x, dtype) for x in (given, widened(given, dtype)))
    assert all(map(torch.equal, one, other)), [(x - y).abs().max() for x, y in zip(one, other, strict=True)]
    wide = {n: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for n, x in given.items()}
    truth = attention.reference(**wide, dtype=torch.float64)
    truth = truth if isinstance(truth, torch.Tensor) else truth[0]
    torch.testing.assert_close(one[0].double(), truth, rtol=0.02, atol=0.02 * float(truth.abs().max()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by torch._dynamo itself
def test_transforms_and_later_calls_read_them() -> None:
    attention = einfuse.compile("causal", backend="torch")
    q, k, v = torch.randn(3, 1, 2, 9, 8), torch.randn(1, 2, 9, 8).to(torch.float8_e4m3fn), torch.randn(1, 2, 9, 8)
    wanted = attention(q[0], k.float(), v)
    assert isinstance(wanted, torch.Tensor)
    for _ in range(3):  # prepared, signed, bound
        assert torch.equal(attention(q[0], k, v), wanted)  # type: ignore[arg-type]  # one output
    mapped = torch.vmap(lambda x: attention(x, k, v))(q)
    torch.testing.assert_close(mapped[0], wanted)
    compiled = only(torch.compile(lambda x: attention(x, k, v), fullgraph=True, backend="aot_eager")(q[0]))
    assert torch.equal(compiled, wanted)
    value, moved = torch.func.jvp(lambda x: attention(x, k, v), (q[0],), (q[1],))[:2]
    truth = torch.func.jvp(lambda x: attention(x, k.float(), v), (q[0],), (q[1],))
    torch.testing.assert_close((value, moved), truth)
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(q[0], k, v)
        assert torch.equal(found, attention(q[0], k.bfloat16(), v))  # type: ignore[arg-type]  # one output


def test_what_has_no_gradient_or_no_precision_is_refused() -> None:
    attention = einfuse.compile("causal", backend="torch")
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    small = k.to(torch.float8_e5m2)
    attention(q, small, v)
    with pytest.raises(TypeError, match=r"causal: k is of torch.float8_e5m2, which has no gradient; give k.detach\(\), or"):
        attention(q, small.clone().requires_grad_(), v)
    with torch.no_grad():
        attention(q, small.clone().requires_grad_(), v)
    with pytest.raises(
        TypeError, match="with feature axes must not all be of 8 bits, since outputs have their dtype, found q: torch"
    ):
        attention(*(x.to(torch.float8_e4m3fn) for x in (q, k, v)))
    with pytest.raises(
        TypeError, match=r"tensors with feature axes must share one dtype, found q: torch.float32, k: .*_e5m2, v: .*64"
    ):
        attention(q, small, v.double())
    with pytest.raises(TypeError, match=r"k must be a float tensor, found torch\.float8_e4m3fnuz"):
        attention(q, k.to(torch.float8_e4m3fnuz), v)


@pytest.mark.slow
def test_gpus_without_these_types_read_them() -> None:
    attention = einfuse.compile("causal")
    given = {n: torch.randn(1, 2, 130, 64) for n in "qkv"} | {"k": torch.zeros(1, 2, 130, 64).to(torch.float8_e4m3fn)}
    (kernel,) = cross_compile(attention, ("sm_80",), backward=False, call=given)
    assert kernel.ok
    assert kernel.matrix
