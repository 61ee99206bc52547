"""Tensors of every odd kind through every way in: a right result and gradient, or one error that names the argument."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

import einfuse
from einfuse.flex import flex_attention
from einfuse.integrations import replace_sdpa
from einfuse.runtime.backends import BackendName

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, for nested, compressed and quantised tensors

Three = tuple[Any, Any, Any]
B, H, N, D = 1, 2, 5, 4


def drawn(b: int = B, h: int = H, n: int = N, m: int = N, d: int = D, e: int = D) -> Three:
    return torch.randn(b, h, n, d), torch.randn(b, h, m, d), torch.randn(b, h, m, e)


def each(change: Callable[[torch.Tensor], Any]) -> Three:
    q, k, v = map(change, drawn())
    return q, k, v


def one(change: Callable[[torch.Tensor], Any], at: int = 0) -> Three:
    q, k, v = (change(x) if n == at else x for n, x in enumerate(drawn()))
    return q, k, v


def unaligned(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, one byte behind the start of their memory."""
    memory = bytearray(b"\0" + x.contiguous().numpy().tobytes())
    return torch.frombuffer(memory, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)


def behind(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.full((3,), torch.nan), x.flatten()])[3:].view(x.shape)


class Named(torch.Tensor):
    """A class that adds nothing."""


GOOD: dict[str, Callable[[], Three]] = {
    "no batch": lambda: drawn(b=0),
    "no heads": lambda: drawn(h=0),
    "no width of values": lambda: drawn(e=0),
    "no queries": lambda: drawn(n=0),
    "no keys": lambda: drawn(m=0),
    "stride 0": lambda: each(lambda x: x[:, :1, :1].expand(B, H, N, D)),
    "overlapping": lambda: one(lambda x: x.flatten().as_strided((B, H, N, D), (1, 1, 1, 1))),
    "large strides": lambda: each(lambda x: x.repeat_interleave(100, -1)[..., ::100]),
    "turned": lambda: each(lambda x: x.mT.contiguous().mT.flip(2)),
    "behind the start": lambda: each(behind),
    "unaligned": lambda: each(unaligned),
    "negative view": lambda: each(lambda x: torch.complex(x, x).conj().imag),
    "real part": lambda: each(lambda x: torch.complex(x, x).real),
    "parameters": lambda: each(torch.nn.Parameter),
    "a class that adds nothing": lambda: each(lambda x: x.as_subclass(Named)),
    "16 bits": lambda: each(torch.Tensor.bfloat16),
    "64 bits": lambda: each(torch.Tensor.double),
}
BAD: dict[str, tuple[Callable[[], Three], str]] = {
    "sparse": (lambda: one(torch.Tensor.to_sparse), r"(q|query) must be .*torch.sparse_coo"),
    "compressed": (lambda: (*drawn()[:2], torch.ones(N, D).to_sparse_csr()), r"(v|value) must be .*(torch.sparse_csr|\(5, 4\))"),
    "mkldnn": (lambda: one(torch.Tensor.to_mkldnn), r"(q|query) must be .*torch._mkldnn"),
    "nested, of old": (
        lambda: each(lambda x: torch.nested.nested_tensor([x[0], x[0, :, 1:]])),
        r"(nested tensors must have layout=torch.jagged, q has|query must be dense or have layout=torch.jagged|query is a nested tensor)",
    ),
    "complex": (lambda: each(lambda x: x.to(torch.complex64)), r"(q|query) must (be a|hold) float.*torch.complex64"),
    "conjugated": (lambda: one(lambda x: x.to(torch.complex64).conj(), 2), r"(v|value) must (be a|hold) float.*torch.complex64"),
    "8 bits": (lambda: each(lambda x: x.to(torch.float8_e4m3fn)), r"((q|query) must hold float|q: torch).*float8_e4m3fn"),
    "quantised": (
        lambda: one(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), 1),
        r"(k|key) must (be a|hold) float.*torch.qint8",
    ),
    "integers": (lambda: each(torch.Tensor.long), r"(q|query) must (be a|hold) float.*torch.int64"),
    "conditions": (lambda: each(lambda x: x > 0), r"(q|query) must (be a|hold) float.*torch.bool"),
    "two devices": (lambda: one(lambda x: x.to("meta"), 1), r"one device, found q on cpu, k on meta, v on cpu"),
    "two dtypes": (lambda: one(torch.Tensor.double, 1), r"must share one dtype, found q: torch.float32, k: torch.float64"),
    "numpy": (lambda: one(lambda x: x.numpy(), 1), r"(k\[B, H // group, Nk, D\]: float|key) must be a tensor, found ndarray"),
    "lists": (lambda: one(lambda x: x.tolist(), 0), r"(q\[B, H, Nq, D\]: float|query) must be a tensor, found list"),
    "a number": (lambda: one(lambda x: 1.0, 2), r"(v\[B, H // group, Nk, E\]: float|value) must be a tensor, found float"),
    "a string": (lambda: one(lambda x: "k", 1), r"(k\[B, H // group, Nk, D\]: float|key) must be a tensor, found str"),
    "nothing": (lambda: one(lambda x: None, 1), r"(missing the argument k|key must be a tensor, found NoneType)"),
    "no axes": (lambda: one(lambda x: x.sum(), 1), r"(k\[B, H // group, Nk, D\].*|key.*)found (the shape \(\)|4, 0 and 4)"),
}  # fmt: skip


def by_flex(backend: BackendName) -> Callable[..., Any]:
    return lambda q, k, v: flex_attention(q, k, v, kernel_options={"backend": backend})


def replaced(q: Any, k: Any, v: Any) -> Any:
    with replace_sdpa():
        return functional.scaled_dot_product_attention(q, k, v)


WAYS: dict[str, Callable[..., Any]] = {
    "attention-torch": einfuse.compile("full", backend="torch"),
    "attention-cpu": einfuse.compile("full", backend="cpu"),
    "flex-torch": by_flex("torch"),
    "flex-cpu": by_flex("cpu"),
    "replaced": replaced,
}


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT / math.sqrt(D)).softmax(-1) @ v


def gradients(attention: Callable[..., Any], three: Three) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    leaves = [x.detach().requires_grad_() for x in three]
    out = attention(*leaves)
    return out.detach(), torch.autograd.grad((out * out).sum(), leaves)


@pytest.mark.parametrize("way", [w if "torch" in w else pytest.param(w, marks=pytest.mark.slow) for w in WAYS])
def test_a_right_result_and_gradient(way: str) -> None:
    for name, make in GOOD.items():
        three = make()
        wide = tuple(x.detach().as_subclass(torch.Tensor).double() for x in three)
        expected, wanted = gradients(formula, wide)
        found, grads = gradients(WAYS[way], three)
        with torch.no_grad():
            plain = WAYS[way](*three)
        few = 0.05 if three[0].dtype == torch.bfloat16 else 1e-5
        assert plain.dtype == three[0].dtype, name
        for what, a, b in (("called", plain, expected), ("recorded", found, expected), *zip("qkv", grads, wanted, strict=True)):
            a = a.as_subclass(torch.Tensor).double()
            torch.testing.assert_close(a, b, rtol=few, atol=few, msg=functools.partial("{} {}: {}".format, name, what))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", BAD)
def test_one_error_that_names_the_argument(name: str, way: str) -> None:
    make, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        WAYS[way](*make())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("way", WAYS)
def test_shapes_without_numbers(way: str) -> None:
    """On meta tensors and on fake ones, with gradients."""
    mode = FakeTensorMode()
    for three in (each(lambda x: x.to("meta")), each(mode.from_tensor)):
        found, grads = gradients(WAYS[way], three)
        assert found.shape == (B, H, N, D)
        assert [g.shape for g in grads] == [x.shape for x in three]


@pytest.mark.parametrize("way", WAYS)
def test_a_width_of_nothing(way: str) -> None:
    """Scores are sums of nothing over the root of 0, which is no number; in the interfaces of torch, whose scale is a number, they are 0."""
    q, k, v = drawn(d=0)
    found = WAYS[way](q, k, v)
    attention = WAYS[way]
    expected = (
        attention.reference(q, k, v) if isinstance(attention, einfuse.Attention) else v.mean(2, keepdim=True).expand(B, H, N, D)
    )
    torch.testing.assert_close(found.double(), expected.double(), equal_nan=True)  # type: ignore[union-attr]  # of one output


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_sequences_of_nothing(backend: BackendName) -> None:
    cu, q = torch.zeros(3, dtype=torch.int32), torch.randn(0, H, D, requires_grad=True)
    out = einfuse.varlen(einfuse.compile("full", backend=backend), q, q, q, cu_seqlens_q=cu)
    assert isinstance(out, torch.Tensor)
    assert out.shape == q.shape
    assert torch.autograd.grad(out.sum(), q)[0].shape == q.shape


MASKS: dict[str, Any] = {
    "ndarray": np.ones((N, N), bool),
    "sparse_coo": torch.ones(N, N).to_sparse(),
    "int32": torch.ones(N, N, dtype=torch.int32),
    "complex64": torch.ones(N, N).to(torch.complex64),
}


@pytest.mark.parametrize("what", MASKS)
def test_a_mask_is_held_to_the_same(what: str) -> None:
    with replace_sdpa(), pytest.raises(TypeError, match=f"attn_mask must .*found .*{what}"):
        functional.scaled_dot_product_attention(*drawn(), attn_mask=MASKS[what])
