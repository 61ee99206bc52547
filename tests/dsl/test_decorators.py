"""Python functions, traced: the same cascades as the texts that say the same."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from einfuse import dsl
from einfuse.dsl import functions as fn
from einfuse.dsl import masks
from einfuse.ir import SpecError, Tensor, size
from einfuse.ir.text import show_body
from einfuse.ir.verify import verify


@dsl.score_mod
def alibi(score: Any, b: Any, h: Any, i: Any, j: Any, *, slope: Any) -> Any:
    """ALiBi."""
    return score + slope[h] * (j - i)


@dsl.mask_mod
def window(b: Any, h: Any, i: Any, j: Any, *, size: int = 256) -> Any:
    return (j <= i) & (i - j < size)


def text(name: str, inputs: str, score: str, where: str, header: str = "", norm: str = "softmax[j](s)") -> str:
    return f"""attention {name}{header} over b, h {{
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d] in k[b, h // group, j, d] in v[b, h // group, j, e]
  {inputs}
  s[i, j] = {score} {where}
  o[i, e] = sum[j]({norm} * v)
  out o
}}"""


def test_score_and_mask() -> None:
    traced = verify(dsl.attention(alibi, window))
    score = "sum[d](q * k) / sqrt(D) + slope * (j - i)"
    assert traced == dsl.compile_text(
        text("alibi_window", "in slope[h]", score, "where j <= i and i - j < size", "(size: int = 256)")
    )
    assert traced.doc == "ALiBi."
    loc = next(x.loc for x in traced.body if getattr(x, "target", "") == "s")
    assert loc is not None
    assert loc.file == __file__


def test_nothing_to_trace() -> None:
    assert dsl.attention() == dsl.compile_text(text("dot_product", "", "sum[d](q * k) / sqrt(D)", ""))
    plain = dsl.attention(normalizer=None, scale=-0.5)
    assert plain == dsl.compile_text(text("dot_product", "", "sum[d](q * k) * -0.5", "", norm="s"))


def test_masks_compose() -> None:
    traced = verify(dsl.attention(mask_mod=window & (masks.document | ~masks.causal)))
    where = "where j <= i and i - j < size and (doc[b, i] == doc[b, j] or not j <= i)"
    wanted = text("window_document_not_causal", "in doc[b, doc_1]: int", "sum[d](q * k) / sqrt(D)", where, "(size: int = 256)")
    assert traced == dsl.compile_text(wanted)


def test_a_plain_function_joins_a_mask() -> None:
    both = masks.causal & (lambda b, h, i, j: h > 0)
    assert "where j <= i and h > 0" in show_body(dsl.attention(mask_mod=both))
    other = (lambda b, h, i, j: h > 0) | masks.causal
    assert "where h > 0 or j <= i" in show_body(dsl.attention(mask_mod=other))


def test_masks_of_the_library() -> None:
    every = [masks.causal, masks.window, masks.band, masks.chunk, masks.prefix, masks.document, masks.padding]
    traced = verify(dsl.attention(mask_mod=every[0] & every[1] & every[2] & every[3] & every[4] & every[5] & every[6]))
    assert [(t.name, t.dtype) for t in traced.inputs[3:]] == [
        ("prefix", "int"),
        ("doc", "int"),
        ("pad", "bool"),
        ("window", "int"),
        ("reach", "int"),
        ("width", "int"),
    ]


def test_types_and_axes_are_told_from_use() -> None:
    def mod(
        score: Any, b: Any, h: Any, i: Any, j: Any, *, tau: Any, table: Any, kind: Any, on: Any, gate: Any, far: float = 2.0
    ) -> Any:
        index = kind[b, i] * 2 + j % 3
        return fn.where(on[b, j], score * tau, far) + table[h, index] + gate[h, i, 0]

    traced = verify(dsl.attention(mod))
    assert traced.inputs[3:] == (
        Tensor("tau", ()),
        Tensor("table", (size("H"), size("table_1"))),
        Tensor("kind", (size("B"), size("Nq")), "int"),
        Tensor("on", (size("B"), size("Nk")), "bool"),
        Tensor("gate", (size("H"), size("Nq"), size("gate_2"))),
        Tensor("far", (), "float", True, 2.0),
    )


def test_an_annotation_decides_the_type() -> None:
    def mod(b: Any, h: Any, i: Any, j: Any, *, a: float, c: int) -> Any:
        return (a[b, i] < a[b, j]) & (c[j] > 0)  # type: ignore[index]  # the annotation tells the type of the elements

    assert [t.dtype for t in dsl.attention(mask_mod=mod).inputs[3:]] == ["float", "int"]


def test_operators() -> None:
    def mod(x: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        a = 1 + x - 2 * x / 3 + (4 - x) * (5 / (x + 6.0)) + x**2 + 2**x - (-x) + abs(+x)
        c = i // 2 + 7 // (j + 1) + i % 3 + 8 % (j + 1)
        return fn.where((i != j) | (i >= 3) & ~(j == 2), a, c)

    a = "1 + x - 2 * x / 3 + (4 - x) * (5 / (x + 6.0)) + x^2 + 2^x - (-x) + abs(x)"
    c = "i // 2 + 7 // (j + 1) + i % 3 + 8 % (j + 1)"
    score = f"{a} if i != j or i >= 3 and not j == 2 else {c}".replace("x", "(sum[d](q * k) / sqrt(D))")
    assert dsl.attention(mod) == dsl.compile_text(text("mod", "", score, ""))


@pytest.mark.parametrize("name", sorted(fn.__all__))
def test_every_function(name: str) -> None:
    arity = {"where": 3, "clamp": 3, "maximum": 2, "minimum": 2, "softcap": 2}.get(name, 1)

    def mod(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        args = (i < j, score, 0.5) if name == "where" else (score, 0.5, 2)[:arity]
        return getattr(fn, name)(*args)

    assert "qk[i, j]" in show_body(verify(dsl.attention(mod)))


def test_functions_of_torch_mean_ours() -> None:
    ours = dsl.attention(lambda s, b, h, i, j: fn.tanh(s / 20) * fn.where(i < j, s, 1.0))
    theirs = dsl.attention(lambda s, b, h, i, j: torch.tanh(s / 20) * torch.where(i < j, s, 1.0))
    assert ours == theirs


def test_a_normaliser_as_text() -> None:
    traced = dsl.attention(
        alibi, normalizer="def half(x) = x / 2 def mine[j](s) { p = relu(half(s))^2 return p / count[j](s) }"
    )
    assert "p[i, j] = max(s[i, j] / 2, 0) ^ 2" in show_body(traced)


def test_keywords_with_other_defaults_are_python() -> None:
    def mod(score: Any, b: Any, h: Any, i: Any, j: Any, *, causal: bool = True, name: str = "x") -> Any:
        return score + (1 if causal and name == "x" else 2)

    assert "s[i, j] = qk[i, j] / sqrt(D) + 1" in show_body(dsl.attention(mod))


TABLE = torch.zeros(4)


def bad_if(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score if i < j else 0


def bad_and(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i < j and j < 3


def bad_chain(b: Any, h: Any, i: Any, j: Any) -> Any:
    return 0 < i < j


def bad_value(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return float(score)


def bad_tensor(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score + torch.ones(3)[0].tolist().__class__


def bad_index(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score[i]


def bad_table(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score + TABLE[i]


def bad_nothing(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    score + 1  # what a user forgets to return


def bad_arity(score: Any, i: Any, j: Any) -> Any:
    return score


def bad_name(score: Any, b: Any, h: Any, i: Any, j: Any, *, k: Any) -> Any:
    return score + k[h]


def bad_reads(score: Any, b: Any, h: Any, i: Any, j: Any, *, table: Any) -> Any:
    return score + table[h] + table[h, i]


def bad_bare(score: Any, b: Any, h: Any, i: Any, j: Any, *, table: Any) -> Any:
    return score + table[h] + table


def bad_type(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score // 2


def bad_torch(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.cumsum(score, 0)


def bad_number(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score + random.random()


def bad_coin(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i > j if np.random.rand() < 2 else i < j


FAULTS = {
    bad_number: "`bad_number` computes something else each time it is called",
    bad_coin: "`bad_coin` draws random numbers",
    bad_if: "the value of a traced number is not known",
    bad_and: "the value of a traced number is not known",
    bad_chain: "the value of a traced number is not known",
    bad_value: "a traced number has no value",
    bad_tensor: "computes with numbers and tables, found type",
    bad_index: "a traced number cannot be indexed",
    bad_table: "a Tensor that is no input cannot be indexed",
    bad_nothing: "`bad_nothing` returns nothing",
    bad_arity: "a score function takes (score, b, h, i, j), `bad_arity` takes 3 arguments",
    bad_name: "`k` is a name of the attention itself",
    bad_reads: "`table` is read with 1 and 2 indices",
    bad_bare: "`table` is read both with and without indices",
    bad_type: "`//` divides integers, found a float",
    bad_torch: "`cumsum` cannot be traced",
}


@pytest.mark.parametrize("mod", FAULTS, ids=lambda f: f.__name__)
def test_what_cannot_be_traced(mod: Any) -> None:
    is_mask = mod in (bad_and, bad_chain, bad_coin)
    with pytest.raises(SpecError) as caught:
        dsl.attention(mask_mod=mod) if is_mask else dsl.attention(mod)
    error = caught.value
    assert FAULTS[mod] in error.message
    assert error.loc is not None
    assert error.loc.file == __file__
    first = mod.__code__.co_firstlineno
    assert error.line in (first, first + 1)
    assert "def bad_" in str(error) or "return" in str(error), "the user's own line is shown"


def test_the_hint_names_the_way_out() -> None:
    with pytest.raises(SpecError) as caught:
        dsl.attention(bad_if)
    assert "& | ~" in caught.value.hint
    assert "einfuse.where" in caught.value.hint


def test_two_functions_must_agree() -> None:
    def other(b: Any, h: Any, i: Any, j: Any, *, size: int = 3) -> Any:
        return i < size

    with pytest.raises(SpecError, match="two functions mean different things by `size`"):
        dsl.attention(mask_mod=window & other)


def test_an_unknown_normaliser() -> None:
    with pytest.raises(SpecError, match="there is no normaliser `sofmax`") as caught:
        dsl.attention(normalizer="sofmax")
    assert "softmax" in caught.value.hint
    with pytest.raises(SpecError, match="defines nothing"):
        dsl.attention(normalizer="# def ")


def test_a_trace_that_explodes_is_refused() -> None:
    def mod(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        for _ in range(40):
            score = score * score
        return score

    with pytest.raises(SpecError, match="too many parts"):
        dsl.attention(mod)
