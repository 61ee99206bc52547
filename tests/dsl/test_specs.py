"""Every spec of the library against its formula in plain torch, which shares no code with the compiler (float64)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from einfuse import dsl
from einfuse.ir import interpret

OWN = ("normaliser", "shapes")  # families with a test file of their own
LIBRARY = Path(__file__).parents[2] / "library" / "specs"
SPECS = {p.stem: p for p in sorted(LIBRARY.rglob("*.attn")) if p.parent.name not in OWN or p.stem == "exp_plus_one"}
B, H, GROUP, NQ, NK, D, E, BUCKETS = 2, 4, 2, 37, 41, 8, 5, 32
SELF = ("document",)  # specs in which queries and keys are one sequence
SIZES = {"B": B, "H": H, "group": GROUP, "D": D, "E": E, "Nk": NK, "N": NK}


def coordinates(nq: int) -> tuple[Tensor, Tensor]:
    return torch.arange(nq)[:, None], torch.arange(NK)[None, :]


def softmax(s: Tensor, live: Tensor, sink: Tensor | None = None) -> Tensor:
    """Rows without a live key give zeros."""
    s = s.masked_fill(~live, -math.inf)
    if sink is not None:
        s = torch.cat([s, sink[None, :, None, None].expand(*s.shape[:-1], 1)], -1)
        return s.softmax(-1)[..., :-1]
    return s.softmax(-1).nan_to_num()


def everywhere(nq: int) -> Tensor:
    return torch.ones(nq, NK, dtype=torch.bool)


def causal(nq: int) -> Tensor:
    i, j = coordinates(nq)
    return j <= i


def turned(x: Tensor) -> Tensor:
    """Rotary positions by complex numbers: the halves are real and imaginary parts."""
    n, half = x.shape[-2], x.shape[-1] // 2
    z = torch.complex(x[..., :half], x[..., half:])
    angle = torch.arange(n, dtype=x.dtype)[:, None] * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    z = z * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def t5_bucket(distance: int, bidirectional: bool) -> int:
    """As in the T5 code: distance = memory position - query position."""
    n, offset, count = -distance, 0, BUCKETS
    if bidirectional:
        count //= 2
        offset = count if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = count // 2
    if n < exact:
        return offset + n
    return offset + min(exact + int(math.log(n / exact) / math.log(128 / exact) * (count - exact) + 1e-9), count - 1)


def t5(x: dict[str, Tensor], nq: int, bidirectional: bool) -> Tensor:
    rows = [[t5_bucket(j - i, bidirectional) for j in range(NK)] for i in range(nq)]
    return x["table"][:, torch.tensor(rows)]


@dataclass(frozen=True)
class Case:
    """Inputs (keys repeated for every head), scaled scores and coordinates."""

    x: dict[str, Tensor]
    s: Tensor
    i: Tensor
    j: Tensor

    @property
    def nq(self) -> int:
        return len(self.i)


def exp_plus_one(c: Case) -> Tensor:
    p = c.s.exp() * causal(c.nq)
    return p / (1 + p.sum(-1, keepdim=True))


def cosine(c: Case) -> Tensor:
    q, k = (y / y.norm(dim=-1, keepdim=True) for y in (c.x["q"], c.x["k"]))
    return softmax(c.x["tau"][:, None, None] * (q @ k.mT), everywhere(c.nq))


def rotary(c: Case) -> Tensor:
    return softmax(turned(c.x["q"]) @ turned(c.x["k"]).mT / math.sqrt(D), causal(c.nq))


def alibi(c: Case, live: Tensor) -> Tensor:
    return softmax(c.s + c.x["slope"][:, None, None] * (c.j - c.i).double(), live)


WEIGHTS: dict[str, Callable[[Case], Tensor]] = {
    "full": lambda c: softmax(c.s, everywhere(c.nq)),
    "cross": lambda c: softmax(c.s, everywhere(c.nq)),
    "causal": lambda c: softmax(c.s, causal(c.nq)),
    "lse": lambda c: softmax(c.s, causal(c.nq)),
    "gqa": lambda c: softmax(c.s, c.j <= c.i + NK - c.nq),
    "softcap": lambda c: softmax(50 * torch.tanh(c.s / 50), causal(c.nq)),
    "sink": lambda c: softmax(c.s, causal(c.nq), c.x["sink"]),
    "softmax1": lambda c: softmax(c.s, causal(c.nq), torch.zeros(H, dtype=c.s.dtype)),
    "exp_plus_one": exp_plus_one,
    "cosine": cosine,
    "alibi": lambda c: alibi(c, causal(c.nq)),
    "alibi_window": lambda c: alibi(c, causal(c.nq) & (c.i - c.j < 7)),
    "bias": lambda c: softmax(c.s + c.x["bias"], everywhere(c.nq)),
    "head_bias": lambda c: softmax(c.s + c.x["bias"], everywhere(c.nq)),
    "relative_position": lambda c: softmax(c.s + c.x["table"][:, c.j - c.i + c.nq - 1], everywhere(c.nq)),
    "t5_bias": lambda c: softmax(c.x["q"] @ c.x["k"].mT + t5(c.x, c.nq, True), everywhere(c.nq)),
    "rope": rotary,
    "sliding_window": lambda c: softmax(c.s, causal(c.nq) & (c.i - c.j < 7)),
    "local": lambda c: softmax(c.s, (c.i - c.j).abs() <= 7),
    "chunked": lambda c: softmax(c.s, causal(c.nq) & (c.i // 7 == c.j // 7)),
    "streaming": lambda c: softmax(c.s, causal(c.nq) & ((c.i - c.j < 7) | (c.j < 3))),
    "document": lambda c: softmax(c.s, causal(c.nq) & (c.x["doc"][:, None, :, None] == c.x["doc"][:, None, None, :])),
    "prefix": lambda c: softmax(c.s, causal(c.nq) | (c.j < c.x["prefix"][:, None, None, None])),
    "padding": lambda c: softmax(c.s, c.x["pad"][:, None, None, :].expand(B, H, c.nq, NK)),
    "sigmoid": lambda c: torch.sigmoid(c.s - math.log(NK)) * causal(c.nq),
    "tanh": lambda c: torch.tanh(c.s) / NK,
    "relu": lambda c: c.s.relu() * causal(c.nq) / causal(c.nq).sum(-1, keepdim=True),
    "relu2": lambda c: c.s.relu() ** 2 * causal(c.nq) / causal(c.nq).sum(-1, keepdim=True),
}


def drawn(cascade_inputs: Sequence[tuple[str, list[int], str]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    out: dict[str, Tensor] = {}
    for name, shape, dtype in cascade_inputs:
        if name == "doc":
            out[name] = torch.randint(0, 4, shape, generator=generator).sort(-1).values
        elif dtype == "int":
            out[name] = torch.randint(0, NK, shape, generator=generator)
        elif dtype == "bool":
            out[name] = torch.rand(shape, generator=generator) > 0.3
        else:
            out[name] = torch.randn(shape, generator=generator, dtype=torch.float64) * (3 if name in "qk" else 1)
    return out


@pytest.mark.parametrize("name", WEIGHTS)
def test_spec_against_its_formula(name: str) -> None:
    module = dsl.parse(dsl.read_spec(SPECS[name]), SPECS[name].name)
    small = {"window": 7, "reach": 7, "width": 7, "sinks": 3}
    params = {p.name: small[p.name] for p in dsl.signature(module).params if p.name in small}
    c = dsl.elaborate(module, params=params)
    sizes = {**SIZES, "Nq": NK if name in SELF else NQ}
    shapes = [(t.name, [_evaluate(a, sizes) for a in t.axes], t.dtype) for t in c.inputs if not t.param]
    inputs = drawn(shapes)
    out = interpret(c, inputs, sizes)["o"]
    heads = {n: inputs[n].repeat_interleave(GROUP, 1) for n in ("k", "v")}
    case = Case({**inputs, **heads}, inputs["q"] @ heads["k"].mT / math.sqrt(D), *coordinates(sizes["Nq"]))
    wanted = WEIGHTS[name](case) @ heads["v"]
    torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-5 if name == "cosine" else 1e-10)


def test_bucketed_bias_of_a_decoder() -> None:
    c = dsl.compile_text(dsl.read_spec(SPECS["t5_bias"]), params={"bidirectional": False})
    sizes = {**SIZES, "Nq": NK}
    inputs = drawn([(t.name, [_evaluate(a, sizes) for a in t.axes], t.dtype) for t in c.inputs])
    k, v = (inputs[n].repeat_interleave(GROUP, 1) for n in ("k", "v"))
    s = inputs["q"] @ k.mT + t5(inputs, NK, False)
    torch.testing.assert_close(interpret(c, inputs, sizes)["o"], softmax(s, causal(NK)) @ v, rtol=1e-9, atol=1e-10)


def test_cross_attention_with_padding() -> None:
    c = dsl.compile_text(dsl.read_spec(SPECS["cross"]), given={"pad"})
    sizes = {**SIZES, "Nq": NQ}
    inputs = drawn([(t.name, [_evaluate(a, sizes) for a in t.axes], t.dtype) for t in c.inputs])
    k, v = (inputs[n].repeat_interleave(GROUP, 1) for n in ("k", "v"))
    wanted = softmax(inputs["q"] @ k.mT / math.sqrt(D), inputs["pad"][:, None, None, :].expand(B, H, NQ, NK)) @ v
    torch.testing.assert_close(interpret(c, inputs, sizes)["o"], wanted, rtol=1e-9, atol=1e-10)


def test_the_log_sum_exp_is_an_output() -> None:
    c = dsl.compile_text(dsl.read_spec(SPECS["lse"]))
    sizes = {**SIZES, "Nq": NQ}
    inputs = drawn([(t.name, [_evaluate(a, sizes) for a in t.axes], t.dtype) for t in c.inputs])
    s = inputs["q"] @ inputs["k"].repeat_interleave(GROUP, 1).mT / math.sqrt(D)
    wanted = s.masked_fill(~causal(NQ), -math.inf).logsumexp(-1)
    torch.testing.assert_close(interpret(c, inputs, sizes)["z"], wanted, rtol=1e-9, atol=1e-10)


NORMALISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "rms_normalise": lambda x: x / (x * x).mean().add(1e-6).sqrt(),
    "l2_normalise": lambda x: x / (x * x).sum().add(1e-6).sqrt(),
    "standardise": lambda x: (x - x.mean()) / x.var(correction=0).add(1e-6).sqrt(),
    "mean_normalise": lambda x: x / len(x),
    "softmax": lambda x: x.softmax(0),
    "softmax1": lambda x: x.exp() / (1 + x.exp().sum()),
    "log_sum_exp": lambda x: x.logsumexp(0).expand(len(x)),
}


@pytest.mark.parametrize("name", NORMALISERS)
def test_normalisers_count_only_what_exists(name: str) -> None:
    text = (
        f"attention f {{ rank i: query; rank j: key in x[i, j] s = x where j <= i + 2 o[i, j] = {name}[j](s) + 0 * s out o }}"
    )
    x = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = interpret(dsl.compile_text(text), {"x": x}, {"Nq": 5, "Nk": 9})["o"]
    for i in range(5):
        torch.testing.assert_close(out[i, : i + 3], NORMALISERS[name](x[i, : i + 3]), rtol=1e-9, atol=1e-12)
    assert not out.triu(3).any(), "a point that does not exist is 0"


def _evaluate(e: object, sizes: dict[str, int]) -> int:
    from einfuse.ir.functions import FUNCTIONS
    from einfuse.ir.nodes import Expr

    assert isinstance(e, Expr)
    if e.op in ("const", "size"):
        return int(e.value if e.op == "const" else sizes[e.name])  # type: ignore[arg-type]  # an axis is an int
    return int(FUNCTIONS[e.op].fold(*(_evaluate(a, sizes) for a in e.args)))
