"""A training call that is kept ready: the gradients of the operators, also where something looks on in its backward alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.runtime.backends import BackendName

TWO = """attention two_outputs over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  s = sum[d](q * k) where j <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  l[i] = sum[j](exp(s))
  out o, l
}"""


@pytest.fixture(params=["torch", pytest.param("cpu", marks=pytest.mark.slow)])
def attention(request: pytest.FixtureRequest) -> einfuse.Attention:
    return einfuse.compile(TWO, backend=request.param)


def leaves(dtype: torch.dtype = torch.float32, n: int = 7, b: int = 2, shared: int = 2, d: int = 4) -> list[torch.Tensor]:
    """Queries of ``b`` sequences, keys and values; two heads of queries share one of keys."""
    return [torch.randn(b, h, n, d, dtype=dtype).mul_(0.5).requires_grad_() for h in (2 * shared, shared, shared)]


def outputs(run: Callable[..., object], xs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    found = run(*xs)
    assert isinstance(found, tuple)
    return found


def exact(attention: einfuse.Attention, xs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return outputs(attention.reference, xs)


def same(found: object, right: object) -> None:
    torch.testing.assert_close(found, right, rtol=2e-4, atol=2e-5, check_dtype=False)


def test_a_call_of_a_known_kind_is_one_node(attention: einfuse.Attention) -> None:
    for n in (7, 7, 6):
        xs = leaves(n=n)
        o, _ = outputs(attention, xs)
        assert o.grad_fn is not None
        assert [f for f, _ in o.grad_fn.next_functions if f is not None] != []
        assert o.grad_fn.name() == "_NodeBackward"
        same(torch.autograd.grad(o.sin().sum(), xs), torch.autograd.grad(exact(attention, xs)[0].sin().sum(), xs))


@pytest.mark.parametrize("wanted", [(0,), (1, 2), (2,), (0, 1, 2)])
def test_inputs_that_want_gradients_are_part_of_the_kind(attention: einfuse.Attention, wanted: tuple[int, ...]) -> None:
    xs = [x.requires_grad_(n in wanted) for n, x in enumerate(leaves())]
    asked = [xs[n] for n in wanted]
    for _ in range(2):
        same(
            torch.autograd.grad(outputs(attention, xs)[0].sin().sum(), asked),
            torch.autograd.grad(exact(attention, xs)[0].sin().sum(), asked),
        )
    with torch.no_grad():
        assert not outputs(attention, xs)[0].requires_grad


@pytest.mark.parametrize("place", [0, 1])
def test_an_output_that_nothing_reads_gives_no_gradient(attention: einfuse.Attention, place: int) -> None:
    xs = leaves()
    found, right = outputs(attention, xs)[place], exact(attention, xs)[place]
    for _ in range(2):  # the graph is kept
        same(*(torch.autograd.grad(x.sum(), xs, retain_graph=True, materialize_grads=True) for x in (found, right)))


def test_gradients_of_any_layout(attention: einfuse.Attention) -> None:
    """Expanded, turned, negated lazily, and in strides of zero."""
    xs = leaves()
    o, right = outputs(attention, xs)[0], exact(attention, xs)[0]
    up = torch.randn(2, 4, 4, 7)
    lazy = torch._neg_view(up.mT)
    assert lazy.is_neg()
    for g in (up.mT, lazy, torch.ones(()).expand_as(o), up.mT.new_zeros(o.shape)):
        same(
            torch.autograd.grad(o, xs, g, retain_graph=True),
            torch.autograd.grad(right, xs, g.to(right.dtype), retain_graph=True),
        )


def test_derivatives_of_gradients(attention: einfuse.Attention) -> None:
    xs = leaves(torch.float64, 4, 1, 1, 2)  # few: it is called anew for every number of them
    outputs(attention, xs)  # the kind is known
    assert torch.autograd.gradcheck(lambda *x: outputs(attention, list(x)), xs)
    assert torch.autograd.gradgradcheck(lambda *x: outputs(attention, list(x))[0], xs)


def test_a_backward_for_many_directions_at_once(attention: einfuse.Attention) -> None:
    xs = leaves()
    o, right = outputs(attention, xs)[0], exact(attention, xs)[0]
    ups = torch.randn(3, *o.shape)
    same(
        torch.autograd.grad(o, xs, ups, is_grads_batched=True),
        [
            torch.stack(p)
            for p in zip(*(torch.autograd.grad(right, xs, u.double(), retain_graph=True) for u in ups), strict=True)
        ],
    )


def test_a_backward_in_autocast_keeps_its_dtypes(attention: einfuse.Attention) -> None:
    xs = leaves()
    o = outputs(attention, xs)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(o.sin().sum(), xs)
    same(found, torch.autograd.grad(exact(attention, xs)[0].sin().sum(), xs))


def test_saved_tensors_that_come_back_in_other_strides(attention: einfuse.Attention) -> None:
    xs = leaves()

    def turned(x: torch.Tensor) -> torch.Tensor:
        return x.mT.contiguous().mT if x.ndim == 4 else x

    for hook in (turned, torch.clone):
        with torch.autograd.graph.saved_tensors_hooks(hook, lambda x: x):
            o = outputs(attention, xs)[0]
        same(torch.autograd.grad(o.sin().sum(), xs), torch.autograd.grad(exact(attention, xs)[0].sin().sum(), xs))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "a length of the same power of two": lambda c: c.update(xs=[x[:, :, 1:] for x in c["xs"]]),
    "other strides": lambda c: c.update(xs=[c["xs"][0], c["xs"][1].mT.contiguous().mT, c["xs"][2]]),
    "a gradient in other strides": lambda c: c.update(up=c["up"].mT.contiguous().mT),
    "one gradient for all points": lambda c: c.update(up=torch.ones(()).expand_as(c["up"])),
    "a number": lambda c: c.update(window=3),
    "which inputs want gradients": lambda c: c.update(wanted=(1,)),
    "the dtype": lambda c: c.update(xs=[x.double() for x in c["xs"]]),
    "the number of threads": lambda c: c.update(threads=1),
    "one memory for two inputs": lambda c: c.update(xs=[c["xs"][0], c["xs"][1], c["xs"][1]]),
    "other memory": lambda c: c.update(xs=[x.flip(-1) for x in c["xs"]]),
}
"""What two calls that want gradients may differ in."""


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_call_that_is_bound_knows_what_another_one_changes(change: str) -> None:
    """Both directions are bound by the second call of a signature: before and after a call that differs in one thing."""
    attention = einfuse.compile("sliding_window", backend="cpu")
    call: dict[str, Any] = {"xs": [torch.randn(1, 2, 8, 4) for _ in range(3)], "up": torch.randn(1, 2, 8, 4), "window": 4}
    call |= {"wanted": (0, 1, 2), "threads": 2}
    other = dict(call)
    CHANGES[change](other)
    threads = torch.get_num_threads()
    try:
        for drawn in (call, call, call, other, other, other, call, other):
            torch.set_num_threads(drawn["threads"])
            xs = [x.detach().requires_grad_(n in drawn["wanted"]) for n, x in enumerate(drawn["xs"])]
            asked = [xs[n] for n in drawn["wanted"]]
            up = drawn["up"].to(xs[0].dtype)[:, :, : xs[0].shape[2]]
            found, right = (only(run(*xs, window=drawn["window"])) for run in (attention, attention.reference))
            same(found, right)
            same(torch.autograd.grad(found, asked, up), torch.autograd.grad(right, asked, up.to(right.dtype)))
    finally:
        torch.set_num_threads(threads)
    assert all(x.again is not None for x in attention._calls.seen.values())


def test_transforms_see_a_known_kind(attention: einfuse.Attention) -> None:
    xs = leaves()
    outputs(attention, xs)
    plain = [x.detach() for x in xs]
    found = torch.func.grad(lambda q: outputs(attention, [q, *plain[1:]])[0].sin().sum())(plain[0])
    same(found, torch.autograd.grad(exact(attention, xs)[0].sin().sum(), xs[0])[0])


def test_a_written_input_is_noticed(attention: einfuse.Attention) -> None:
    xs = leaves()
    o = outputs(attention, xs)[0]
    with torch.no_grad():
        xs[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["retention", "efficient"])
def test_scans_and_several_kernels(name: str, backend: BackendName) -> None:
    from einfuse.runtime.verify import Shape, example_inputs

    attention = einfuse.compile(name, backend=backend)
    example = example_inputs(attention.cascade, torch.float32, 0, Shape(1, 2, 9, 9, (4, 4), 1))
    xs = [x.requires_grad_() for x in example.values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    given: dict[str, Any] = {**example}
    for _ in range(2):
        grads = []
        for run in (attention, attention.reference):
            out = run(**given)
            out = out if isinstance(out, torch.Tensor) else out[0]
            grads.append(torch.autograd.grad(out.double().sin().sum(), xs))
        same(*grads)
