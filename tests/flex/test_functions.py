"""Every function that a trace knows, over small, large, negative and special arguments, against torch on the same dtype."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from einfuse import SpecError
from einfuse.flex import AuxRequest, assemble, flex_attention
from einfuse.flex.tracer import Tracer
from einfuse.ir.interpreter import evaluate_indices

Function = Callable[..., Any]

SMALL = (0.0, 1e-10, 3e-7, 1e-5, 1e-3, 0.02, 0.3, 0.49999997, 0.5, 0.7, 0.99, 1.0, 1.01, 1.5, 2.0, 2.5, 3.0, 5.0)
LARGE = (8.0, 10.0, 20.0, 40.0, 80.0, 88.0)
HUGE = (1e3, 12345.5, 8388607.5, 8388609.0, 3e9, 1e15)


def signed(*values: float) -> list[float]:
    return sorted({s * x for x in values for s in (-1.0, 1.0)})


ALL = signed(*SMALL, *LARGE, *HUGE)
USUAL = signed(*SMALL, *LARGE)
POSITIVE = [x for x in ALL if x > 0]
NOT_ZERO = [x for x in ALL if x]


def without_gradient(x: Any) -> Any:
    with torch.no_grad():
        y = x * x + 1
    return x * y


FUNCTIONS: dict[str, tuple[Function, list[float]]] = {
    "expm1": (torch.expm1, signed(*SMALL, 8.0, 10.0)),
    "sinh": (torch.sinh, [*USUAL, 89.0]),
    "cosh": (torch.cosh, [*USUAL, 89.0]),
    "tanh": (torch.tanh, ALL),
    "asinh": (torch.asinh, ALL),
    "atanh": (torch.atanh, signed(*(x for x in SMALL if x < 1))),
    "sigmoid": (torch.sigmoid, USUAL),
    "logsigmoid": (functional.logsigmoid, ALL),
    "softplus": (functional.softplus, ALL),
    "softplus of beta": (lambda x: functional.softplus(x, beta=2.0), ALL),
    "exp": (torch.exp, USUAL),
    "exp2": (torch.exp2, USUAL),
    "log": (torch.log, POSITIVE),
    "log2": (torch.log2, POSITIVE),
    "log10": (torch.log10, [*POSITIVE, 100.0, 1e4]),
    "log1p": (torch.log1p, [x for x in ALL if x > -1]),
    "sqrt": (torch.sqrt, POSITIVE),
    "rsqrt": (torch.rsqrt, POSITIVE),
    "erf": (torch.erf, USUAL),
    "sin": (torch.sin, USUAL),
    "cos": (torch.cos, USUAL),
    "tan": (torch.tan, USUAL),
    "floor": (torch.floor, ALL),
    "ceil": (torch.ceil, ALL),
    "trunc": (torch.trunc, ALL),
    "round": (torch.round, ALL),
    "frac": (torch.frac, ALL),
    "abs": (torch.abs, ALL),
    "sign": (torch.sign, ALL),
    "square": (torch.square, USUAL),
    "reciprocal": (torch.reciprocal, NOT_ZERO),
    "relu": (torch.relu, ALL),
    "leaky_relu": (functional.leaky_relu, ALL),
    "elu": (functional.elu, USUAL),
    "silu": (functional.silu, USUAL),
    "gelu": (functional.gelu, USUAL),
    "gelu by tanh": (lambda x: functional.gelu(x, approximate="tanh"), USUAL),
    "celu": (lambda x: functional.celu(x, 0.7), USUAL),
    "selu": (functional.selu, USUAL),
    "hardtanh": (functional.hardtanh, ALL),
    "relu6": (functional.relu6, [*ALL, 6.0]),
    "hardsigmoid": (functional.hardsigmoid, ALL),
    "hardswish": (functional.hardswish, USUAL),
    "softsign": (functional.softsign, ALL),
    "tanhshrink": (functional.tanhshrink, USUAL),
    "mish": (functional.mish, USUAL),
    "logaddexp": (lambda x: torch.logaddexp(x, x * 0.5 - 1), [*USUAL, -2.0, -1e6, 1e6]),
    "no gradient": (without_gradient, USUAL),
    "addcdiv": (lambda x: torch.addcdiv(x, x, x * x + 1, value=0.5), USUAL),
    "cube": (lambda x: x**3, USUAL),
    "square of a float": (lambda x: x**2.0, USUAL),
    "inverse square": (lambda x: x**-2, [x for x in NOT_ZERO if abs(x) > 1e-9]),
    "square root": (lambda x: x**0.5, POSITIVE),
    "power": (lambda x: x**2.5, POSITIVE),
    "a high power": (lambda x: x**17, signed(*SMALL[3:])),
    "power of a number": (lambda x: 2.5**x, signed(*SMALL, *LARGE[:4])),
    "modulo": (lambda x: x % 1.5, [*USUAL, 1e3, 12345.5]),
    "modulo of what is not exact": (lambda x: x % 0.1, USUAL),
    "modulo of a negative number": (lambda x: x % -0.7, USUAL),
    "floor division": (lambda x: x // 0.1, USUAL),
    "fmod": (lambda x: torch.fmod(x, 0.3), USUAL),
    "truncated division": (lambda x: torch.div(x, 0.7, rounding_mode="trunc"), USUAL),
    "division": (lambda x: x / 3, ALL),
    "division of a number": (lambda x: 3 / x, NOT_ZERO),
    "lerp": (lambda x: torch.lerp(x, x * 3, 0.25), USUAL),
    "clamp": (lambda x: torch.clamp(x, -0.7, 1.2), ALL),
    "where": (lambda x: torch.where(x > 0.5, x, -x), ALL),
    "detach": (lambda x: x * x.detach(), USUAL),
}
EXACT = ("floor", "ceil", "trunc", "round", "frac", "sign", "abs", "modulo", "fmod", "floor division", "truncated division")
"""What torch computes without an error, or with jumps that its float64 has elsewhere: compared with float32."""


def interpreted(fn: Function, *operands: Any, floats: torch.dtype = torch.float32) -> Tensor:
    """A function of captured tensors and numbers, traced, and its formula interpreted for every query."""
    rows = next(len(x) for x in operands if isinstance(x, Tensor))
    sizes = {"b": 1, "h": 1, "i": rows, "j": 1}
    tracer = Tracer(sizes, floats, torch.device("cpu"))
    value = tracer.run(lambda b, h, q_idx, kv_idx: fn(*(x[q_idx] if isinstance(x, Tensor) else x for x in operands)))
    tensors, numbers = assemble.arguments(tracer)
    whole = assemble.condition(tracer, tracer.value(True))
    window = {r: (0, n) for r, n in sizes.items()}
    (out,) = evaluate_indices(whole, (value.expr,), tuple(sizes), {**tensors, **numbers}, assemble.sizes_of(tracer), window)
    return out.expand(1, 1, rows, 1)[0, 0, :, 0].to(floats)


def in_a_kernel(fns: list[Function], x: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Each function at its row of ``x[function, N]``, and its derivative: with one key the largest score of a row is the score."""
    q = x[None, :, :, None].clone().requires_grad_()
    one = torch.ones(1, len(fns), 1, 1)

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        out = fns[0](score)
        for n, fn in enumerate(fns[1:], 1):
            out = torch.where(h == n, fn(score), out)
        return out

    request, options = AuxRequest(max_scores=True), {"backend": backend}
    _, aux = flex_attention(q, one, one, score_mod, scale=1.0, return_aux=request, kernel_options=options)
    (grad,) = torch.autograd.grad(aux.max_scores.sum(), q)
    return aux.max_scores[0].detach(), grad[0, :, :, 0]


def by_torch(fn: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = fn(x)
    try:
        (grad,) = torch.autograd.grad(y.sum(), x)
    except RuntimeError:  # floor_divide has no derivative there
        grad = torch.zeros_like(x)
    return y.detach(), grad


def wrong(name: str, fn: Function, x: Tensor, found: tuple[Tensor, Tensor]) -> list[str]:
    """What is further from the truth than four times eager torch, and four units in the last place (of 1, for derivatives)."""
    eager = by_torch(fn, x)
    truth = eager if name.startswith(EXACT) else by_torch(fn, x.double())
    out = []
    for what, a, b, t, least in zip(("value", "derivative"), found, eager, truth, (1e-37, 1.0), strict=True):
        unit = torch.finfo(torch.float32).eps * t.double().abs().clamp(min=least)
        allowed = 4 * (b.double() - t.double()).abs() + 4 * unit
        bad = ~((a.double() - t.double()).abs() <= allowed) & (a != b)
        out += [f"{name}: {what} at {x[n]:.9g} is {a[n]:.9g}, not {t[n]:.9g} (eager {b[n]:.9g})" for n in bad.nonzero()[:, 0]]
    return out


@pytest.mark.optimised
@pytest.mark.parametrize("backend", ["torch", pytest.param("cpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", range(7))
def test_functions_of_floats(part: int, backend: str) -> None:
    """A seventh of them in one kernel; rows are filled up with 0.5."""
    names = list(FUNCTIONS)[part::7]
    width = max(len(FUNCTIONS[n][1]) for n in names)
    x = torch.tensor([[*FUNCTIONS[n][1], *(width - len(FUNCTIONS[n][1])) * [0.5]] for n in names])
    values, slopes = in_a_kernel([FUNCTIONS[n][0] for n in names], x, backend)
    faults = [wrong(n, FUNCTIONS[n][0], *row) for n, *row in zip(names, x, zip(values, slopes, strict=True), strict=True)]
    assert list(itertools.chain(*faults)) == []


# -- integers and conditions ---------------------------------------------------------------------------------------------------

DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32)
NUMBERS = (3, -2, 0.5, True, 300)
N = 12


def table(dtype: torch.dtype, positive: bool = False) -> Tensor:
    """Entries over the range of a dtype, its ends among them, and not over more than 600."""
    torch.manual_seed(DTYPES.index(dtype))
    if dtype == torch.bool:
        return torch.ones(N, dtype=dtype) if positive else torch.arange(N) % 3 == 0
    if dtype == torch.float32:
        return torch.randn(N).abs() + 0.1 if positive else torch.randn(N) * 3
    ends = torch.iinfo(dtype)
    low, high = 1 if positive else max(ends.min, -300), min(ends.max, 300)
    x = torch.randint(low, high + 1, (N,)).to(dtype)
    edges = [low, high, 1] + ([] if ends.bits > 16 else [ends.max, 1 if positive else ends.min])
    x[: len(edges)] = torch.tensor(edges).to(dtype)
    return x


BINARY: dict[str, Function] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floor_divide": lambda a, b: a // b,
    "remainder": lambda a, b: a % b,
    "truncated": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "fmod": lambda a, b: torch.fmod(a, b),
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "rsub": torch.rsub,
    "logical_and": torch.logical_and,
    "logical_xor": torch.logical_xor,
    "where": lambda a, b: torch.where(a > 1, a, b),
}
ARITHMETIC = ("add", "sub", "mul", "div", "floor_divide", "remainder", "truncated", "lt", "ge", "eq")
DIVISIONS = ("floor_divide", "remainder", "truncated", "fmod", "div")
UNARY: dict[str, Function] = {
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "invert": lambda a: ~a,
    "square": torch.square,
    "cube": lambda a: a**3,
    "shifted": lambda a: a << 3,
    "shifted back": lambda a: a >> 2,
    "some bits": lambda a: a & 0b101,
    "all but some bits": lambda a: a & -8,
    "more bits": lambda a: a | 5,
    "other bits": lambda a: a ^ 9,
    "byte": lambda a: a.byte(),
    "char": lambda a: a.char(),
    "short": lambda a: a.short(),
    "int": lambda a: a.int() * 2,
    "long": lambda a: a.long(),
    "bool": lambda a: a.bool(),
    "float": lambda a: a.float() / 3,
    "relu": torch.relu,
    "exp": lambda a: torch.exp(a * 0.01),
    "round": lambda a: torch.round(a * 0.5),
}


def compared(fn: Function, *operands: Any) -> str:
    """Empty where both give the same, or both refuse; torch's function sees numbers without an axis, as in its own eager call."""
    try:
        rows = [fn(*(x[n] if isinstance(x, Tensor) else x for x in operands)) for n in range(N)]
    except (RuntimeError, ZeroDivisionError):
        with pytest.raises(SpecError):
            interpreted(fn, *operands)
        return ""
    wanted, found = torch.stack(rows).float(), interpreted(fn, *operands)
    return "" if torch.allclose(found, wanted, rtol=1e-6, atol=1e-6) else f"{found.tolist()} is not {wanted.tolist()}"


@pytest.mark.parametrize("name", UNARY)
def test_a_function_of_an_integer(name: str) -> None:
    dtypes = [d for d in DTYPES if not d.is_floating_point or name in ("byte", "char", "short", "int", "long", "bool")]
    for dtype in dtypes:
        x = table(dtype) if not dtype.is_floating_point else table(dtype, positive=True)
        if (name, dtype) not in (
            ("relu", torch.bool),
            ("shifted", torch.bool),
            ("shifted back", torch.bool),
        ):  # torch knows none
            assert compared(UNARY[name], x) == "", dtype


@pytest.mark.parametrize("name", BINARY)
def test_a_function_of_two_numbers(name: str) -> None:
    """Of every pair of dtypes."""
    for one, other in itertools.product(DTYPES, repeat=2):
        if name not in DIVISIONS or other != torch.bool:  # which may be 0
            assert compared(BINARY[name], table(one), table(other, name in DIVISIONS).roll(3)) == "", (one, other)


@pytest.mark.parametrize("name", ARITHMETIC)
def test_a_function_of_a_number_and_one_of_python(name: str) -> None:
    """On both sides: it takes the dtype of the other, unless it is of a higher kind."""
    for dtype, number in itertools.product(DTYPES, NUMBERS):
        if name not in DIVISIONS or dtype != torch.bool:
            assert compared(BINARY[name], table(dtype), number) == "", (dtype, number)
            assert compared(BINARY[name], number, table(dtype, name in DIVISIONS)) == "", (dtype, number)


BOUNDS = torch.tensor([-2, 0, 0, 1, 5, 5, 90])
LOOKED_UP: dict[str, Function] = {
    "embedding": lambda a: functional.embedding(a % 7, BOUNDS.float()[:, None])[0],
    "take": lambda a: torch.take(BOUNDS, a % 7),
    "isin": lambda a: torch.isin(a, BOUNDS),
    "isin of a number": lambda a: torch.isin(a, 5),
    "not in": lambda a: torch.isin(a, BOUNDS, invert=True),
    "searchsorted": lambda a: torch.searchsorted(BOUNDS, a),
    "searchsorted, right": lambda a: torch.searchsorted(BOUNDS, a, right=True),
    "searchsorted, side": lambda a: torch.searchsorted(BOUNDS, a, side="right", out_int32=True),
    "bucketize": lambda a: torch.bucketize(a, BOUNDS),
    "bucketize, right": lambda a: torch.bucketize(a, BOUNDS, out_int32=True, right=True),
}


@pytest.mark.parametrize("name", LOOKED_UP)
def test_a_look_up(name: str) -> None:
    """In tables of integers and of floats, of bounds that occur twice."""
    x = torch.tensor([-3, -2, -1, 0, 1, 2, 4, 5, 6, 89, 90, 91])
    for dtype in (torch.int64, torch.float32) if name not in ("embedding", "take") else (torch.int64,):
        assert compared(LOOKED_UP[name], x.to(dtype)) == ""


TABLE = torch.nn.Embedding(7, 1, padding_idx=0)
DIFFERENT: dict[str, tuple[Function, str]] = {
    "a gradient of its own": (lambda a: TABLE(a)[0], "`embedding` with a gradient of its own"),
    "a table that is written": (
        lambda a: functional.embedding(a, BOUNDS[:, None], max_norm=1.0)[0],
        "`embedding` with max_norm",
    ),
    "a vector in a vector": (lambda a: torch.isin(BOUNDS + a, BOUNDS).any(), "`isin` of a vector"),
    "a vector looked up": (lambda a: torch.searchsorted(BOUNDS, BOUNDS + a).sum(), "`searchsorted` of a vector"),
    "a sorter": (lambda a: torch.searchsorted(BOUNDS, a, sorter=BOUNDS.argsort()), "`searchsorted` with a sorter"),
    "two sides": (lambda a: torch.searchsorted(BOUNDS, a, side="left", right=True), "left side and the right"),
    "in place": (lambda a: functional.relu(a * 1.0, inplace=True), "`relu` with inplace=True works in place"),
    "vmap": (lambda a: torch.vmap(torch.sin)(a), "cannot be traced: ValueError: vmap"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_torch_does_otherwise_is_refused(name: str) -> None:
    fn, message = DIFFERENT[name]
    with pytest.raises(SpecError, match=message):
        interpreted(fn, torch.arange(N) % 7)


def test_integers_that_kernels_cannot_hold_are_refused() -> None:
    large = torch.tensor([2**31 - 1] * N, dtype=torch.int32)
    with pytest.raises(SpecError, match="an integer can become 2147483648 here, and kernels count in 32 bits"):
        interpreted(lambda a: a + 1, large)
    with pytest.raises(SpecError, match=r"can become 4294967296 here.*\n.*\n.*\n.*torch.unique"):
        interpreted(lambda a: a == 3, torch.tensor([2**32] * N))
    with pytest.raises(SpecError, match="divided by what may be zero"):
        interpreted(lambda a: 7 // a, torch.arange(N))
    assert interpreted(lambda a: a < 2**40, large).tolist() == [1.0] * N


def test_kernels_of_float64_count_in_64_bits() -> None:
    large = torch.tensor([2**40, 5])
    assert interpreted(lambda a: a * 3 == 3 * 2**40, large, floats=torch.float64).tolist() == [1.0, 0.0]


def test_an_expression_that_grows_without_bound_is_refused() -> None:
    def doubled(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        for _ in range(40):
            score = score * score + 1
        return score

    x = torch.zeros(1, 1, 4, 8)
    with pytest.raises(SpecError, match="this function makes an expression of too many parts"):
        flex_attention(x, x, x, doubled)
