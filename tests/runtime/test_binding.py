"""A wrong call gets one error that names the argument, what was expected and what was found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.flex import flex_attention
from einfuse.integrations import scaled_dot_product_attention
from einfuse.ir.text import parse
from einfuse.runtime.attention import Attention

TEXT = """cascade demo over b, h {
  rank b: batch = B
  rank h: head = H
  rank i: query = Nq
  rank j: key = Nk
  rank d: feature = D
  rank e: feature = E
  in q[B, H, Nq, D]: float
  in k[B, H // group, Nk, D]: float
  in v[B, H // group, Nk, E]: float
  in doc[B, Nk]: int
  in table[2 * D + 1]: float
  param window: int = 4
  param scale: float
  s[i, j] = sum[d] q[b, h, i, d] * k[b, h // group, j, d]
  p[i, j] = sigmoid(s[i, j] * scale[] + table[3]) where doc[b, i] == doc[b, j] and i - j < window[]
  o[i, e] = sum[j] p[i, j] * v[b, h // group, j, e]
  out o
}"""
DEMO = Attention(parse(TEXT))


def call(**changes: object) -> object:
    """A good call, with some arguments changed or (None) left out."""
    good: dict[str, object] = {
        "q": torch.zeros(2, 4, 5, 6),
        "k": torch.zeros(2, 2, 7, 6),
        "v": torch.zeros(2, 2, 7, 8),
        "doc": torch.zeros(2, 7, dtype=torch.int64),
        "table": torch.zeros(13),
        "scale": 0.5,
    }
    arguments = {n: x for n, x in (good | changes).items() if x is not None}
    return DEMO.reference(**arguments)  # type: ignore[arg-type]


def test_a_good_call_is_good() -> None:
    assert call() is not None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"q": None}, TypeError, ["missing the argument q[B, H, Nq, D]: float"]),
        ({"scale": None}, TypeError, ["missing the argument scale: float"]),
        ({"slope": torch.zeros(4)}, TypeError, ["no argument slope", "q, k, v, doc, table, window, scale"]),
        ({"tabel": torch.zeros(13)}, TypeError, ["no argument tabel (did you mean table?)"]),
        ({"q": [1.0]}, TypeError, ["q[B, H, Nq, D]: float must be a tensor", "list"]),
        ({"q": torch.zeros(2, 4, 5)}, ValueError, ["q[B, H, Nq, D]", "4 axes", "(2, 4, 5)"]),
        ({"q": torch.zeros(2, 4, 5, 6, dtype=torch.int64)}, TypeError, ["q must be a float tensor", "torch.int64"]),
        ({"doc": torch.zeros(2, 7)}, TypeError, ["doc must be an int tensor", "torch.float32"]),
        ({"v": torch.zeros(2, 2, 9, 8)}, ValueError, ["axis 2 of v is Nk = 7 (from k)", "found 9"]),
        ({"k": torch.zeros(3, 2, 7, 6)}, ValueError, ["axis 0 of k is B = 2 (from q)", "found 3"]),
        ({"k": torch.zeros(2, 3, 7, 6)}, ValueError, ["axis 1 of k is H // group", "4 must be a multiple", "found 3"]),
        ({"v": torch.zeros(2, 1, 7, 8)}, ValueError, ["axis 1 of v is H // group = 2", "found 1"]),
        ({"table": torch.zeros(12)}, ValueError, ["axis 0 of table is 2 * D + 1 = 13", "found 12"]),
        ({"scale": float("nan")}, ValueError, ["scale must be finite", "nan"]),
        ({"scale": float("inf")}, ValueError, ["scale must be finite", "inf"]),
        ({"scale": "big"}, TypeError, ["scale must be a number", "str 'big'"]),
        (
            {"scale": torch.tensor(0.5, requires_grad=True)},
            TypeError,
            ["scale is a number of the host", "gradient", "`in scale[]`"],
        ),
        ({"q": torch.zeros(2, 4, 5, 6).to_sparse()}, TypeError, ["q must be a dense tensor", "sparse_coo", "q.to_dense()"]),
        ({"window": 2.5}, TypeError, ["window must be an int", "2.5"]),
        ({"window": True}, TypeError, ["window must be an int", "True"]),
        ({"q": torch.zeros(2, 4, 5, 6, device="meta")}, ValueError, ["one device", "q on meta"]),
    ],
)
def test_a_wrong_call_says_what_is_wrong(changes: dict[str, object], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call(**changes)
    message = str(caught.value)
    assert message.startswith("demo")
    for word in words:
        assert word in message


@pytest.mark.parametrize(("heads", "hint"), [(2, True), (3, False), (8, False)])
def test_shared_heads_that_a_spec_does_not_know_of(heads: int, hint: bool) -> None:
    reads = "in q[b, h, i, d]; in k[b, h, j, d]; s = sum[d](q * k); o[i] = max[j](s)"
    own = einfuse.compile(f"attention own over b, h {{ rank i: query; rank j: key; rank d: feature; {reads}; out o }}")
    with pytest.raises(ValueError, match=rf"axis 1 of k is H = 4 \(from q\), found {heads}") as caught:
        own(torch.zeros(1, 4, 5, 6), torch.zeros(1, heads, 7, 6))
    assert ("heads that share it read it at `h // group`" in str(caught.value)) == hint


def test_too_many_and_doubled_arguments() -> None:
    q = torch.zeros(1, 1, 1, 1)
    with pytest.raises(TypeError, match=r"takes 5 tensors \(q, k, v, doc, table\), found 6"):
        DEMO(q, q, q, q, q, q)
    with pytest.raises(TypeError, match="q is given twice"):
        DEMO(q, q=q)


def test_features_share_a_dtype() -> None:
    with pytest.raises(TypeError, match=r"q: torch.float32, k: torch.bfloat16"):
        DEMO(
            torch.zeros(2, 4, 5, 6),
            torch.zeros(2, 2, 7, 6, dtype=torch.bfloat16),
            torch.zeros(2, 2, 7, 8),
            torch.zeros(2, 7, dtype=torch.int64),
            torch.zeros(13),
            scale=1.0,
        )


@pytest.mark.parametrize(("backend", "found"), [("cuda", "'cuda'"), (torch.zeros(2), "Tensor")])
def test_an_unknown_back_end_is_named(backend: Any, found: str) -> None:
    attention = einfuse.compile("causal")
    for call in (lambda: attention.source(backend), lambda: attention.with_backend(backend)(*[torch.zeros(1, 1, 2, 4)] * 3)):
        with pytest.raises(einfuse.EinfuseError, match=f"there is no back end {found}; choose from cpu, triton, torch"):
            call()


SHARED = """attention shared(N: int = 4) over b, h {
  rank i: query; rank j: key; rank d: feature
  in q[b, h, i, d]
  in k[b, h // N, j, d]
  in weight[N]
  o[i, d] = sum[j](exp(sum[d](q * k)) * k)
  out o
}"""


@pytest.mark.parametrize("queries", [1, 3])
def test_heads_that_a_group_does_not_divide_read_nothing_outside(queries: int) -> None:
    """Neither by a number nor by a size that another tensor tells; a single query takes a kernel of its own."""
    q, k = torch.zeros(1, 6, queries, 8), torch.zeros(1, 1, 5, 8)
    number = einfuse.compile(SHARED.replace("  in weight[N]\n", ""), backend="cpu")
    with pytest.raises(ValueError, match=r"index 1 of k is h // 4 = 1 at h = 4, but the axis has 1"):
        number(q, k)
    size = einfuse.compile(SHARED.replace("(N: int = 4)", ""), backend="cpu")
    with pytest.raises(ValueError, match=r"axis 1 of k is H // N: 6 must be a multiple of N = 4"):
        size(q, k, torch.zeros(4))
    assert only(size(q[:, :4], k, torch.zeros(4))).shape == (1, 4, queries, 8)


LOST: dict[str, Callable[[Callable[[torch.Tensor], torch.Tensor]], object]] = {
    "requires a gradient": lambda f: torch.func.grad(f)(torch.tensor(0.5)),
    "has a tangent": lambda f: torch.func.jvp(f, (torch.tensor(0.5),), (torch.tensor(1.0),)),
    "many values under vmap": lambda f: torch.func.vmap(f)(torch.ones(2)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # by torch.func.jvp itself
@pytest.mark.parametrize("words", LOST)
def test_a_derivative_along_a_host_number_is_refused(words: str) -> None:
    """Wherever a number is taken, also where another transform lies between."""
    x = torch.zeros(1, 2, 3, 4)
    calls: list[Callable[[torch.Tensor], Any]] = [
        lambda scale: call(scale=scale),
        lambda scale: torch.func.vmap(lambda q: call(q=q, scale=scale))(torch.zeros(2, 2, 4, 5, 6)),
        lambda scale: flex_attention(x, x, x, scale=scale),  # what is tested
        lambda scale: scaled_dot_product_attention(x, x, x, scale=scale),  # type: ignore[arg-type]  # what is tested
    ]
    for run in calls:
        with pytest.raises(TypeError, match=f"scale is a number of the host.*{words}"):
            LOST[words](lambda scale, run=run: run(scale).sum())  # type: ignore[misc]  # bound at once


def test_a_number_in_a_tensor_is_a_number() -> None:
    parameter = torch.nn.Parameter(torch.tensor(0.5))
    with torch.no_grad():
        assert torch.equal(call(scale=parameter), call(scale=0.5))  # type: ignore[arg-type]  # one output
    assert torch.equal(call(scale=parameter.detach()), call(scale=0.5))  # type: ignore[arg-type]  # one output


@pytest.mark.parametrize("name", ["query", "value", "attn_mask"])
def test_what_is_no_tensor_is_named(name: str) -> None:
    given: dict[str, Any] = dict.fromkeys(("query", "key", "value"), torch.zeros(1, 2, 3, 4))
    with pytest.raises(TypeError, match=f"{name} must be a tensor, found list"):
        scaled_dot_product_attention(**(given | {name: [1.0]}))
