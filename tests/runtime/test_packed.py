"""Sequences of different lengths in one call: as each sequence by itself, for every spec of the library that has such a form."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from narrowed import only, three
from torch import Tensor

import einfuse
from einfuse import SpecError
from einfuse.ir.passes import pack
from einfuse.ir.text import show
from einfuse.ir.verify import verify
from einfuse.runtime.live import live_share
from einfuse.runtime.packed import Form
from einfuse.runtime.specs import library
from einfuse.runtime.verify import Shape, example_inputs

LENGTHS = (5, 0, 9, 1)
CU = torch.tensor((0, *LENGTHS)).cumsum(0)
REFUSED = {
    "retention": "a scan runs through all tokens",
    "relative_position": "an axis of .* is made of a length",
    "linformer": "is one value for all positions",
    "sparse_tokens": "chooses among positions",
    "routed_regions": "no position that would tell which",
    "swin_window": "found b, [nw]",
    "neighborhood": "no input with an axis for the batch and one for positions",
    "residual_scores": "the output [sp] has more than one axis of positions",
    "additive_map": "the output w has more than one axis of positions",
}


def alone(attention: einfuse.Attention, inputs: dict[str, Any], b: int) -> dict[str, Any]:
    """The arguments of sequence b of a padded batch, cut to its length."""
    positions = {size for _, size in pack.axes(attention.cascade).values()}
    out = dict(inputs)
    for t in attention.cascade.inputs:
        for axis, e in enumerate(t.axes):
            if e.op == "size" and e.name in positions:
                out[t.name] = out[t.name].narrow(axis, 0, LENGTHS[b])
            elif e.op == "size" and e.name == "B":
                out[t.name] = out[t.name].narrow(axis, b, 1)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(library()))
def test_a_spec_is_that_of_each_sequence_or_is_refused(name: str) -> None:
    """The packed cascade against the cascade as written, sequence by sequence, in float64."""
    attention = einfuse.compile(name)
    try:
        held = pack.axes(attention.cascade)
        form = Form.of(attention, {s: CU for _, s in held.values()})
    except (SpecError, ValueError) as error:
        assert any(re.search(reason, str(error)) for reason in REFUSED.values()), error  # noqa: PT017  # most have a form
        return
    assert name not in REFUSED
    verify(form.attention.cascade)
    n = max(LENGTHS)
    inputs = example_inputs(attention.cascade, torch.float64, 3, Shape(len(LENGTHS), 2, n, n, (4, 4), 1))
    parts = [alone(attention, inputs, b) for b in range(len(LENGTHS))]
    for x, (at, _) in held.items():
        inputs[x] = torch.cat([p[x].squeeze(0) for p in parts], at - 1)
    outs = form.attention.reference(**inputs, **form.tables(inputs), dtype=torch.float64)
    for b, length in enumerate(LENGTHS):
        if length == 0 or (b > 0 and "hash(" in show(attention.cascade)):  # drawn for a sequence by its number
            continue
        wanted = attention.reference(**parts[b])
        for o, w, at in zip(everything(outs), everything(wanted), form.found.outs, strict=True):
            torch.testing.assert_close(o.narrow(at, int(CU[b]), length), w.squeeze(0), equal_nan=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_packed_form_is_refused(name: str) -> None:
    attention = einfuse.compile(name)
    with pytest.raises((SpecError, ValueError), match=REFUSED[name]):
        Form.of(attention, {s: CU for _, s in pack.axes(attention.cascade).values()})


def everything(outs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outs if isinstance(outs, tuple) else (outs,)


def tokens(cu: Tensor, *shape: int) -> Tensor:
    return torch.randn(int(cu[-1]), *shape, requires_grad=True)


def one_by_one(
    attention: einfuse.Attention, cu_q: Tensor, cu_k: Tensor, q: Tensor, k: Tensor, v: Tensor, **given: Any
) -> Tensor:
    """A call for each sequence; ``given`` are functions of the sequence's number."""
    out = []
    for b in range(len(cu_q) - 1):
        x, y = slice(int(cu_q[b]), int(cu_q[b + 1])), slice(int(cu_k[b]), int(cu_k[b + 1]))
        parts = [t.transpose(0, 1)[None] for t in (q[x], k[y], v[y])]
        out.append(attention(*parts, **{n: f(b) for n, f in given.items()})[0].transpose(0, 1))
    return torch.cat(out)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_packed_sequences_and_their_gradients(backend: Any) -> None:
    """Grouped heads, a slope a head and a prefix a sequence, sequences of one token to several tiles; queries of their own bounds."""
    cu = torch.tensor([0, 3, 153, 153, 154, 300])
    fewer = torch.tensor([0, 2, 20, 20, 21, 40], dtype=torch.int32)
    slope, prefix = torch.rand(4), torch.tensor([1, 50, 0, 0, 100])
    for name, cu_q, given, each in (
        ("causal", cu, {}, {}),
        ("alibi_window", cu, {"slope": slope}, {"slope": lambda b: slope}),
        ("prefix", cu, {"prefix": prefix}, {"prefix": lambda b: prefix[b : b + 1]}),
        ("full", fewer, {}, {}),
        ("sliding_window", fewer, {"window": 9}, {"window": lambda b: 9}),
    ):
        attention = einfuse.compile(name, backend=backend)
        q, k, v = tokens(cu_q, 4, 8), tokens(cu, 2, 8), tokens(cu, 2, 8)
        found = einfuse.varlen(attention, q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu, **given)
        wanted = one_by_one(attention.with_backend("torch"), cu_q, cu, q, k, v, **each)
        assert isinstance(found, Tensor)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        gradients = [torch.autograd.grad(o.sin().sum(), (q, k, v)) for o in (found, wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def jagged(cu: Tensor, *shape: int) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(tokens(cu, *shape).detach(), cu).requires_grad_()


@pytest.mark.parametrize("name", ["cope", "selective"])
def test_positions_that_are_held_whole_are_those_of_the_sequence(name: str) -> None:
    """Ranks of features as long as a sequence: nothing of another sequence is read, and nothing behind the last one."""
    cu, attention = torch.tensor([0, 4, 9, 9, 12]), einfuse.compile(name, backend="torch")
    q, k, v, table = tokens(cu, 2, 4), tokens(cu, 2, 4), tokens(cu, 2, 3), torch.randn(5, 4)
    given = {"table": table} if name == "cope" else {}
    found = einfuse.varlen(attention, q, k, v, cu_seqlens_q=cu, **given)
    wanted = one_by_one(attention, cu, cu, q, k, v, **{n: lambda b: table for n in given})
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(o.sin().sum(), (q, k, v)) for o in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_jagged_tensors_in_and_out() -> None:
    """As `scaled_dot_product_attention` takes them: made as [B, N*, H, D] and transposed. Gradients are jagged too."""
    cu = torch.tensor([0, 3, 153, 154, 300])
    held = [jagged(cu, h, 8) for h in (4, 4, 4)]
    q, k, v = (x.transpose(1, 2) for x in held)
    found = einfuse.compile("causal", backend="torch")(q, k, v)
    assert isinstance(found, Tensor)
    assert found.shape == q.shape
    wanted = [
        torch.nn.functional.scaled_dot_product_attention(*three(x[:, :n].transpose(1, 2) for x in rows), is_causal=True)
        for rows in zip(*([y[None] for y in x.unbind()] for x in held), strict=True)
        for n in [rows[0].shape[1]]
    ]
    torch.testing.assert_close(found.values(), torch.cat(wanted, 2)[0], rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(found.values().sin().sum(), held)
    theirs = torch.autograd.grad(torch.cat(wanted, 2).sin().sum(), held)
    for a, b in zip(ours, theirs, strict=True):
        assert a.is_nested
        torch.testing.assert_close(a.values(), b.values(), rtol=1e-4, atol=1e-5)


def test_jagged_keys_of_their_own_lengths_several_outputs_and_a_jagged_mask() -> None:
    cu_q, cu_k = torch.tensor([0, 3, 5, 30]), torch.tensor([0, 7, 7, 20])
    q, k, v = jagged(cu_q, 2, 4).transpose(1, 2), jagged(cu_k, 2, 4).transpose(1, 2), jagged(cu_k, 2, 4).transpose(1, 2)
    o, lse = einfuse.compile("lse", backend="torch")(q, k, v)
    wanted, wanted_lse = einfuse.compile("lse", backend="torch").reference(q, k, v)
    torch.testing.assert_close(o.values(), wanted.values().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.values(), wanted_lse.values().float(), rtol=1e-5, atol=1e-5)
    assert lse.shape[:2] == (3, 2)
    pad = torch.nested.nested_tensor_from_jagged(torch.rand(20) < 0.6, cu_k)
    found = einfuse.compile("padding", backend="torch")(q, k, v, pad)
    for b in range(3):
        x = (t[b][None] for t in (q, k, v))
        if cu_k[b] < cu_k[b + 1]:
            one = einfuse.compile("padding", backend="torch")(*x, pad[b][None])
            torch.testing.assert_close(found[b], one[0], rtol=1e-5, atol=1e-5)
        else:
            assert not found[b].any()


def test_no_work_for_pairs_of_two_sequences() -> None:
    """32 sequences of 512 tokens: of tiles of 256 x 256, those on the diagonal of blocks."""
    cu = torch.arange(0, 32 * 512 + 1, 512)
    form = Form.of(einfuse.compile("full", backend="torch"), {"Nq": cu, "Nk": cu})
    inputs = {x: torch.randn(1, 32 * 512, 2) for x in "qkv"}
    assert live_share(form.attention, {**inputs, **form.tables(inputs)}) == pytest.approx(1 / 32)


def test_bounds_are_looked_at_again_when_they_change() -> None:
    attention = einfuse.compile("full", backend="torch")
    q = torch.randn(8, 1, 2)
    cu = torch.tensor([0, 4, 8])
    einfuse.varlen(attention, q, q, q, cu_seqlens_q=cu)
    cu[1] = 1
    found = einfuse.varlen(attention, q, q, q, cu_seqlens_q=cu)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found[:1], q[:1])  # one token sees itself alone
    cu[1] = 9
    with pytest.raises(ValueError, match="start at 0 and never fall"):
        einfuse.varlen(attention, q, q, q, cu_seqlens_q=cu)


Q = torch.randn(8, 1, 2)
OK = torch.tensor([0, 4, 8])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: einfuse.varlen(a, Q, Q, Q, cu_seqlens_q=torch.tensor([0, 4, 9])), ValueError, "q has 8 tokens, .* end at 9"),
        (lambda a: einfuse.varlen(a, Q, Q, Q, cu_seqlens_q=torch.tensor([1, 8])), ValueError, "start at 0 and never fall"),
        (lambda a: einfuse.varlen(a, Q, Q, Q, cu_seqlens_q=torch.tensor(8)), ValueError, r"shape \[B \+ 1\]"),
        (lambda a: einfuse.varlen(a, Q, Q, Q, cu_seqlens_q=OK.float()), TypeError, "int32 or int64"),
        (
            lambda a: einfuse.varlen(a, Q, Q, Q, cu_seqlens_q=OK, cu_seqlens_k=torch.tensor([0, 8])),
            ValueError,
            "as many sequences",
        ),
        (lambda a: einfuse.varlen(a, Q[0], Q, Q, cu_seqlens_q=OK), ValueError, "q must be packed, tokens first, with 3 axes"),
        (lambda a: einfuse.varlen(a, Q, Q, cu_seqlens_q=OK), TypeError, "missing the argument v"),
        (lambda a: einfuse.varlen(a, Q, Q, Q, q=Q, cu_seqlens_q=OK), TypeError, "q is given twice"),
        (lambda a: a(jagged(OK, 1, 2), jagged(OK, 1, 2), jagged(OK, 1, 2)), ValueError, "axis 1 is ragged; transpose it"),
        (
            lambda a: a(jagged(OK, 1, 2).transpose(1, 2), jagged(OK, 1, 2).transpose(1, 2), Q[None].transpose(1, 2)),
            ValueError,
            "v must be a nested tensor",
        ),
        (
            lambda a: a(*[torch.nested.nested_tensor([Q, Q]).transpose(1, 2)] * 3),
            ValueError,
            "must have layout=torch.jagged",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_does_not_fit_is_refused(
    call: Callable[[einfuse.Attention], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(einfuse.compile("full", backend="torch"))


@pytest.mark.slow
def test_compiled_functions_break_at_the_call_and_say_why() -> None:
    attention = einfuse.compile("full", backend="torch")

    def model(q: Tensor) -> Tensor:
        out = einfuse.varlen(attention, q * 2, q, q, cu_seqlens_q=OK)
        assert isinstance(out, Tensor)
        return out + 1

    torch.testing.assert_close(torch.compile(model, backend="eager")(Q), model(Q))
    whole = torch.compile(lambda q: einfuse.varlen(attention, q, q, q, cu_seqlens_q=OK), backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="the bounds of sequences are looked at on the host"):
        whole(Q)


def test_traced_functions_take_sequences_too() -> None:
    """What the refusal of `einfuse.flex.flex_attention` points to."""

    def causal(b: Any, h: Any, i: Any, j: Any) -> Any:
        return j <= i

    def alibi(score: Any, b: Any, h: Any, i: Any, j: Any, *, slope: Any) -> Any:
        return score + slope[h] * (j - i)

    attention = einfuse.attention(alibi, causal, backend="torch")
    cu, slope = torch.tensor([0, 3, 10, 11]), torch.rand(2)
    q = tokens(cu, 2, 4)
    jagged_q = torch.nested.nested_tensor_from_jagged(q, cu).transpose(1, 2)
    found: Any = attention(jagged_q, jagged_q, jagged_q, slope=slope)
    wanted = one_by_one(attention, cu, cu, q, q, q, slope=lambda b: slope)
    torch.testing.assert_close(found.values().transpose(0, 1), wanted, rtol=1e-5, atol=1e-5)


def test_bounds_that_count_no_versions_are_read_as_they_are() -> None:
    """Those made in inference mode."""
    attention = einfuse.compile("causal", backend="torch")
    q, k, v = (torch.randn(7, 2, 8) for _ in range(3))
    with torch.inference_mode():
        cu = torch.tensor([0, 3, 7])
        first = only(einfuse.varlen(attention, q, k, v, cu_seqlens_q=cu))
        cu[1] = 5
        second = only(einfuse.varlen(attention, q, k, v, cu_seqlens_q=cu))
    assert torch.equal(first, only(einfuse.varlen(attention, q, k, v, cu_seqlens_q=torch.tensor([0, 3, 7]))))
    assert torch.equal(second, only(einfuse.varlen(attention, q, k, v, cu_seqlens_q=torch.tensor([0, 5, 7]))))
