"""torch's transforms over attentions of every nature: each must give what the same transform gives of the interpreted formula."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import einfuse
from einfuse.flex import flex_attention

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),  # by torch.func.jvp itself
]

Tensors = tuple[torch.Tensor, ...]
Function = Callable[..., Tensors]
B, H, N, D, MANY = 2, 2, 6, 4, 3


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


@dataclass(frozen=True)
class Case:
    """An attention, its float inputs, and what else a call gives."""

    attention: einfuse.Attention
    floats: dict[str, torch.Tensor]
    rest: dict[str, torch.Tensor] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    def points(self) -> Tensors:
        return tuple(self.floats.values())

    def tangents(self) -> Tensors:
        return tuple((x + 1).cos() for x in self.points())

    def compiled(self, *points: torch.Tensor) -> Tensors:
        return as_tuple(self.attention(**dict(zip(self.floats, points, strict=True)), **self.rest, **self.numbers))

    def formula(self, *points: torch.Tensor) -> Tensors:
        return as_tuple(
            self.attention.reference(
                **dict(zip(self.floats, points, strict=True)), **self.rest, **self.numbers, dtype=torch.float64
            )
        )


def as_tuple(outs: torch.Tensor | Tensors) -> Tensors:
    return outs if isinstance(outs, tuple) else (outs,)


def qkv(n: int = N, kv_heads: int = H) -> dict[str, torch.Tensor]:
    return {"q": draw(B, H, n, D), "k": draw(B, kv_heads, n, D).sin(), "v": draw(B, kv_heads, n, D).cos()}


# A kernel and a scan are compiled; what the others are is the same on every back end, and torch's compiles nothing.
CASES: dict[str, Callable[[], Case]] = {
    "one pass": lambda: Case(einfuse.compile("causal"), qkv(kv_heads=1)),
    "host numbers": lambda: Case(
        einfuse.compile("alibi_window", backend="torch"), {**qkv(), "slope": draw(H)}, numbers={"window": 3}
    ),
    "a scan of two outputs": lambda: Case(
        einfuse.compile("retention"), {**qkv(), "slope": draw(H).abs(), "initial": draw(B, H, D, D)}
    ),
    "two kernels": lambda: Case(
        einfuse.compile("linformer", backend="torch"), {**qkv(), "f": draw(H, 3, N), "g": draw(H, 3, N).sin()}
    ),
    "lists of pairs": lambda: Case(einfuse.compile("neighbourhood_2d", backend="torch", columns=4, window=3), qkv(16)),
    "an optional table": lambda: Case(einfuse.compile("cross", backend="torch"), qkv(), {"pad": draw(B, N) < 0.7}),
    "the linear form": lambda: Case(einfuse.compile("taylor2", backend="torch", form="linear"), qkv()),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def loss(function: Function) -> Callable[..., torch.Tensor]:
    return lambda *points: torch.stack([(o * o.sin()).sum() for o in as_tuple(function(*points))]).sum()


def first_order(function: Function, case: Case) -> tuple[object, ...]:
    along = jvp(function, case.points(), case.tangents())
    pulled = vjp(function, *case.points())[1]
    return along, pulled(along[1])


def test_first_order(case: Case) -> None:
    same(first_order(case.compiled, case), first_order(case.formula, case))


def test_dual_numbers(case: Case) -> None:
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, t) for x, t in zip(case.points(), case.tangents(), strict=True)]
        tangents = tuple(forward_ad.unpack_dual(o).tangent for o in case.compiled(*duals))
    same(tangents, jvp(case.formula, case.points(), case.tangents())[1])


ORDERS: dict[str, Callable[[Function, Case], object]] = {
    "jvp of grad": lambda f, c: jvp(grad(loss(f)), c.points(), c.tangents()),
    "grad of jvp": lambda f, c: grad(loss(lambda *x: jvp(f, x, c.tangents())[1]))(*c.points()),
    "grad of grad": lambda f, c: grad(loss(lambda *x: grad(loss(f), tuple(range(len(x))))(*x)))(*c.points()),
    "jvp of jvp": lambda f, c: jvp(lambda *x: jvp(f, x, c.tangents())[1], c.points(), c.tangents()),
    "third": lambda f, c: grad(loss(lambda *x: (grad(lambda *y: grad(loss(f))(*y).square().sum())(*x),)))(*c.points()),
}


@pytest.mark.parametrize("order", ORDERS)
def test_higher_orders(case: Case, order: str) -> None:
    same(ORDERS[order](case.compiled, case), ORDERS[order](case.formula, case))


def of_first(function: Function, case: Case) -> Callable[[torch.Tensor], torch.Tensor]:
    """The first output as a function of the first input."""
    return lambda x: function(x, *case.points()[1:])[0]


def test_jacobians_and_hessians(case: Case) -> None:
    compiled, formula, x = of_first(case.compiled, case), of_first(case.formula, case), case.points()[0]
    expected = torch.autograd.functional.jacobian(formula, x)
    for name, transform in (("jacrev", jacrev), ("jacfwd", jacfwd)):
        torch.testing.assert_close(transform(compiled)(x), expected, msg=name)
    for strategy in ("reverse-mode", "forward-mode"):
        same(torch.autograd.functional.jacobian(compiled, x, vectorize=True, strategy=strategy), expected)
    second = torch.autograd.functional.hessian(lambda y: formula(y).square().sum(), x)
    same(hessian(lambda y: compiled(y).square().sum())(x), second)


def stacked(case: Case, mapped: tuple[bool, ...], dim: int) -> Tensors:
    """The points, those that are mapped several times along an axis more."""
    return tuple(
        torch.stack([x * (1 - n / 4) for n in range(MANY)], dim) if m else x for x, m in zip(case.points(), mapped, strict=True)
    )


def one_by_one(function: Function, points: Tensors, mapped: tuple[bool, ...], dim: int) -> Tensors:
    each = [function(*(x.select(dim, n) if m else x for x, m in zip(points, mapped, strict=True))) for n in range(MANY)]
    return tuple(map(torch.stack, zip(*each, strict=True)))


MAPPED: dict[str, Callable[[int], tuple[bool, ...]]] = {
    "queries": lambda count: (True, *[False] * (count - 1)),
    "what keys give": lambda count: (False, *[True] * (count - 1)),
}


@pytest.mark.parametrize("which", MAPPED)
def test_vmap(case: Case, which: str) -> None:
    mapped = MAPPED[which](len(case.points()))
    points, dims = stacked(case, mapped, 1), tuple(1 if m else None for m in mapped)
    same(vmap(case.compiled, dims)(*points), one_by_one(case.formula, points, mapped, 1))
    gradients, truth = (grad(loss(f), tuple(range(len(points)))) for f in (case.compiled, case.formula))
    same(vmap(gradients, dims)(*points), one_by_one(truth, points, mapped, 1))


def test_vmap_of_vmap_and_grad_of_vmap(case: Case) -> None:
    every = (True,) * len(case.points())
    points = stacked(case, every, 0)
    twice = tuple(torch.stack([x, x / 2], 2) for x in points)
    inner = [one_by_one(case.formula, tuple(x.select(2, n) for x in twice), every, 0) for n in range(2)]
    same(vmap(vmap(case.compiled), 2)(*twice), tuple(map(torch.stack, zip(*inner, strict=True))))
    numbers = tuple(range(len(points)))
    found = grad(loss(vmap(case.compiled)), numbers)(*points)
    same(found, one_by_one(grad(loss(case.formula), numbers), points, every, 0))


def test_batched_gradients(case: Case) -> None:
    points = tuple(x.clone().requires_grad_() for x in case.points())
    (out, *_) = case.compiled(*points)
    directions = torch.stack([out.detach().cos(), out.detach().sin()])
    found = torch.autograd.grad(out, points, directions, is_grads_batched=True, retain_graph=True, allow_unused=True)
    each = [torch.autograd.grad(out, points, g, retain_graph=True, allow_unused=True) for g in directions]
    for whole, parts in zip(found, zip(*each, strict=True), strict=True):
        assert (whole is None) == (parts[0] is None)
        if whole is not None:
            same(whole, torch.stack(parts))


COMPILED: dict[str, Callable[[Function, Case], Tensors]] = {
    "vmap": lambda f, c: vmap(f, 1)(*stacked(c, (True,) * len(c.points()), 1)),
    "grad": lambda f, c: grad(loss(f), tuple(range(len(c.points()))))(*c.points()),
    "jvp": lambda f, c: jvp(f, c.points(), c.tangents()),
}


@pytest.mark.parametrize("transform", COMPILED)
@pytest.mark.parametrize("name", ["one pass", "a scan of two outputs", "an optional table"])
def test_transforms_inside_a_compiled_graph(name: str, transform: str) -> None:
    torch.compiler.reset()
    case = CASES[name]()  # called before it is captured nowhere
    run = COMPILED[transform]
    whole = torch.compile(functools.partial(run, case.compiled, case), fullgraph=True, backend="aot_eager")
    same(whole(), run(case.formula, case) if transform != "vmap" else run(case.compiled, case))


def test_tables_that_flex_captures() -> None:
    """Among them one whose minus infinities hide keys, for one of the values that vmap maps over."""
    q, bias = draw(1, H, N, D), torch.stack([draw(N), draw(N).masked_fill(torch.arange(N) == 2, -torch.inf)])

    def run(table: torch.Tensor) -> torch.Tensor:
        out = flex_attention(q, q, q, score_mod=lambda score, b, h, i, j: score + table[j])
        assert isinstance(out, torch.Tensor)
        return out

    def formula(table: torch.Tensor) -> torch.Tensor:
        return (q @ q.mT / math.sqrt(D) + table).softmax(-1) @ q

    same(vmap(run)(bias), torch.stack([formula(table) for table in bias]))
    one = bias[0]
    same(jvp(run, (one,), (one.cos(),)), jvp(formula, (one,), (one.cos(),)))
    same(grad(lambda x: run(x).square().sum())(one), grad(lambda x: formula(x).square().sum())(one))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.attention = torch.nn.Linear(D, 3 * D).double(), einfuse.compile("causal")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.into(x).unflatten(-1, (3, 1, D)).permute(2, 0, 3, 1, 4)
        out = self.attention(q, k, v)
        assert isinstance(out, torch.Tensor)
        return out.squeeze(1)


PARTS: dict[str, Callable[[einfuse.Attention], Function]] = {
    "step": lambda attn: lambda *x: as_tuple(attn.step(None, *x)[0]),
    "parts": lambda attn: (
        lambda *x: as_tuple(attn.finalise(attn.merge(attn.state(*x, keys=(0, 2)), attn.state(*x, keys=(2, N)))))
    ),
    "prefix": lambda attn: lambda *x: as_tuple(attn.prefix(*x)[:, :, -1]),  # type: ignore[call-overload]  # of one output
}


@pytest.mark.parametrize(("name", "part"), [("full", "step"), ("full", "parts"), ("full", "prefix"), ("retention", "step")])
def test_parts_of_a_call(name: str, part: str) -> None:
    attn = einfuse.compile(name)
    case = Case(attn, qkv() if name == "full" else {**qkv(), "slope": draw(H).abs()})
    run = PARTS[part](attn)
    same(jvp(run, case.points(), case.tangents()), jvp(case.formula, case.points(), case.tangents()))
    points = stacked(case, (True,) * len(case.points()), 0)
    same(vmap(run)(*points), one_by_one(case.formula, points, (True,) * len(points), 0))


def test_gradients_of_every_sample() -> None:
    layer, x = Layer(), draw(MANY, N, D)
    weights = dict(layer.named_parameters())

    def of_one(held: Mapping[str, torch.Tensor], sample: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, dict(held), (sample[None],)).square().sum()  # type: ignore[no-any-return]  # torch does not type it

    found = vmap(grad(of_one), (None, 0))({n: w.detach() for n, w in weights.items()}, x)
    for n, sample in enumerate(x):
        expected = torch.autograd.grad(of_one(weights, sample), list(weights.values()))
        for whole, one in zip(found.values(), expected, strict=True):
            same(whole[n], one)


def test_the_first_call_of_a_process_may_be_inside_a_transform() -> None:
    text = """attention fresh over b { rank i: query; rank j: key; rank d: feature
      in q[b, i, d]; in k[b, j, d]; o[i, d] = sum[j](%s * k); out o }"""
    q, k = draw(B, N, D), draw(B, N, D).sin()
    for weights in ("softmax[j](sum[d](q * k))", "sum[d](q * k)"):  # the second factors: the choice of a form is not made here
        attn = einfuse.compile(text % weights)
        run = lambda x: attn(x, k)  # noqa: B023, E731  # called in this turn
        torch.testing.assert_close(vmap(run)(torch.stack([q, q]))[1], attn.reference(q, k))
