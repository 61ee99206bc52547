"""The work that a text causes is bounded: it compiles, or is refused at a place of its own, before much was made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from narrowed import flat

import einfuse
from einfuse.dsl import compile_text
from einfuse.ir import Expr, Fold, SpecError, interpret
from einfuse.ir.passes import canonicalise, classify_score, differentiate, pipeline, stages
from einfuse.runtime import ranges

MOST = 300_000
"""Expressions made on the way, shared ones once. Growth by inlining would make as many within a few more statements."""

HEAD = """attention f over b, h {
  rank i: query = N; rank j: key = N; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in table[b, h, N, L]
"""
END = "  o[i, e] = sum[j](w * v)\n  out o\n}\n"
SCORE = "s = sum[d](q * k) where j <= i"


def chain(first: str, step: str, last: str, count: int) -> str:
    """Statements of which each is made of the one before: ``@`` is the number of a step, ``#`` that of the step before."""
    lines = [
        first,
        *(step.replace("@", str(n)).replace("#", str(n - 1)) for n in range(1, count + 1)),
        last.replace("#", str(count)),
    ]
    return HEAD + "".join(f"  {line}\n" for line in lines) + END


def choices(count: int, read: str) -> str:
    level = f"level = repeat({count}, n = 0, n + 1 if i // int(2 ^ n) != j // int(2 ^ n) else n)"
    return HEAD + f"  {level}\n  w = sum[d](q * k) {read}\n" + END


def repeated(count: int, start: str, following: str) -> str:
    return HEAD + f"  {SCORE}\n  t = repeat({count}, n = {start}, {following})\n  w = s * t\n" + END


REFUSED = "too large|more than"
TEXTS = {
    # text, and what is said of it, None where it compiles
    "an index made of choices": (choices(12, "* table[b, h, i, level] where j <= i"), None),
    "a mask made of choices": (choices(14, "where level < 5"), None),
    "a number made of choices": (repeated(40, "1.0 * i", "n * n + sin(n) if n > j else 0.5 * n + n"), None),
    "a row made of choices": (repeated(40, "sum[j](s)", "n * n + sin(n) if n > 2 else 0.5 * n + n"), None),
    "indices in indices": (chain("n0 = j - i", "n@ = n#[i, max(j - n#, 0)]", "w = sum[d](q * k) * n#", 40), REFUSED),
    "shifted reads": (chain(SCORE.replace("s", "s0", 1), "s@ = s#[i, max(j - 1, 0)] + s#[i, max(j - 2, 0)]", "w = s#", 25), REFUSED),
    "conditions": (chain(SCORE.replace("s", "s0", 1), "s@ = s#[i, max(j - 1, 0)] + s# where j != @", "w = s#", 25), REFUSED),
    "squares of weights": (chain(f"{SCORE}\n  m[i] = max[j](s)\n  p0 = exp(s - m)", "p@ = p# * p# + p#", "w = p#", 25), REFUSED),
    "choices of weights": (chain(f"{SCORE}\n  m[i] = max[j](s)\n  p0 = s - m", "p@ = p# if p# > @ else p# * p#", "w = p#", 40), REFUSED),
    "conditions of choices": (chain(f"{SCORE}\n  r[i] = max[j](s)\n  p0 = s if r > 0.5 else s - r", "p@ = sin(p# * r + p#) + p# * p#",
                                    "w = p# if p# > 0.5 else p# - r", 2), None),
    "squares of features": (chain("x0[i, d] = q", "x@ = x# * x# + x#", "w = sum[d](x#[i, d] * k)", 30), None),
    "a long chain of statements": (chain(SCORE.replace("s", "s0", 1), "s@ = 1.01 * s# + 0.5", "w = s#", 300), None),
    "a longer one": (chain(SCORE.replace("s", "s0", 1), "s@ = 1.01 * s# + 0.5", "w = s#", 1200), "more than 1,000 statements"),
    "a deep weight": (chain(f"{SCORE}\n  m[i] = max[j](s)\n  p0 = s - m", "p@ = sin(p#) + 0.5", "w = p#", 150), REFUSED),
    "passes in passes": (repeated(11, "0.0", "repeat(10, a = n, sum[j](max(s, a)))"), "more than 100 passes over j"),
    "products of sums": (HEAD + f"  {SCORE}\n  w = " + " * ".join(f"(s + {n}.5)" for n in range(40)) + "\n" + END, None),
    "calls in calls": ("".join(f"def g{n}(x) {{ y = sin(x) * x  return g{n + 1}(y) + y }}\n" for n in range(30))
                       + "def g30(x) = x\n" + HEAD + f"  {SCORE}\n  w = g0(s)\n" + END, None),
    "a decay made of squares": ("""attention f over b, h {
  rank i: query; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, i, d]
  in v[b, h, i, e]
  in g[b, h, i]
  scan i {
    a0 = exp(g)
""" + "".join(f"    a{n} = a{n - 1} * a{n - 1}\n" for n in range(1, 21)) + """    state S[d, e] = a20 * S + k * v
    o = sum[d](q * S)
  }
  out o
}
""", None),
}  # fmt: skip


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The number of expressions that were made."""
    count = 0
    usual = Expr.__post_init__

    def counting(e: Expr) -> None:
        nonlocal count
        count += 1
        usual(e)

    monkeypatch.setattr(Expr, "__post_init__", counting)
    return lambda: count


def analysed(text: str) -> None:
    """Everything that is derived of a text, forward and backward. Raises SpecError."""
    cascade = compile_text(text)
    ranges.suspects(cascade)
    if any(isinstance(x, Fold) for x in cascade.body):
        pipeline.run(cascade)
        return
    for stage in stages.run(flat(cascade)):
        pipeline.run(stage)
        canonical = canonicalise.run(stage)
        classify_score.run(canonical)
        for c, _ in differentiate.run(canonical, tuple(t.name for t in stage.inputs if t.dtype == "float")).cascades:
            pipeline.run(c)


@pytest.mark.slow
@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_grow_are_compiled_or_refused_early(case: str, made: Callable[[], int]) -> None:
    text, refusal = TEXTS[case]
    if refusal is None:
        analysed(text)
    else:
        with pytest.raises(SpecError, match=refusal) as caught:
            analysed(text)
        assert caught.value.loc is not None
        assert caught.value.hint
    assert made() < MOST


OPERATIONS = ("{0} * {1} + {0}", "{0} if {1} > 0.5 else {0} - {1}", "sin({0}) + {1}", "max({0}, {1})", "{0} * {0}", "0.5 * {1}")
STATISTICS = ("sum[j]({0})", "max[j]({0})", "sum[j](relu({0} - {1}))", "sum[j]({0} where {1} > 0)")
WHERE = ("", "", " where j != {n}", " where {0} > 0")


@st.composite
def nested(draw: st.DrawFn) -> str:
    """Statements, definitions and repeats, each of values before it."""
    lines, pairs, rows = [f"  {SCORE}"], ["s"], ["1.5"]

    def pick(names: list[str]) -> str:
        return draw(st.sampled_from(names[-3:]))

    for n in range(draw(st.integers(4, 24))):
        kind = draw(st.sampled_from(("pair", "pair", "row", "repeat", "call", "shift")))
        at = (pick(pairs), pick([*pairs, *rows]))
        if kind == "row":
            lines.append(f"  r{n}[i] = " + draw(st.sampled_from(STATISTICS)).format(at[0], pick(rows)))
            rows.append(f"r{n}")
            continue
        if kind == "repeat":
            value = f"repeat({draw(st.integers(2, 12))}, x = {at[0]}, {draw(st.sampled_from(OPERATIONS)).format('x', at[1])})"
        elif kind == "call":
            value = f"g{draw(st.integers(0, 3))}({at[0]})"
        elif kind == "shift":
            value = f"{pick(pairs)}[i, max(j - 1, 0)] + {at[0]}"
        else:
            value = draw(st.sampled_from(OPERATIONS)).format(*at) + draw(st.sampled_from(WHERE)).format(*at, n=n)
        lines.append(f"  p{n}[i, j] = {value}")
        pairs.append(f"p{n}")
    body = ["y = sin(x) * x return y + y", "y = x * x z = y * y return z if z > y else x", "return softmax[j](x)", "return x"]
    ends = "".join(f"def g{n}(x) {{ {draw(st.sampled_from(body))} }}\n" for n in range(4)).replace(
        "return softmax[j](x)", "return x + 1"
    )
    return ends + HEAD + "\n".join(lines) + f"\n  w = {pairs[-1]}\n" + END


@pytest.mark.slow
@given(nested())
@settings(max_examples=12)
def test_drawn_texts_are_compiled_or_refused(text: str) -> None:
    with contextlib.suppress(SpecError):
        analysed(text)


@pytest.mark.slow
def test_an_index_that_is_too_long_to_write_out_is_evaluated_where_its_gradient_is_added_up() -> None:
    """Log-linear attention: every pair reads the entry of its level, the highest digit in which the two positions differ."""
    attention = einfuse.compile(choices(7, "* table[b, h, i, level] where j <= i"), backend="torch")
    n = 37
    x = [torch.randn(1, 2, *s, dtype=torch.float64).requires_grad_() for s in ((n, 4), (n, 4), (n, 3), (n, 8))]
    q, k, v, table = x
    at = torch.arange(n)
    level = sum((at[:, None] // 2**m != at // 2**m).long() for m in range(7))
    assert isinstance(level, torch.Tensor)
    given = dict(zip(("q", "k", "v", "table"), x, strict=True))
    oracle = interpret(attention.cascade, given, {"B": 1, "H": 2, "N": n, "D": 4, "E": 3, "L": 8})["o"]
    truth = ((q @ k.mT) * table.gather(-1, level.expand(1, 2, n, n)) * (at[:, None] >= at)) @ v
    wanted = torch.autograd.grad(truth.sin().sum(), x)
    for found in (attention(*x), oracle):
        assert isinstance(found, torch.Tensor)
        torch.testing.assert_close(found, truth)
        for a, b in zip(torch.autograd.grad(found.sin().sum(), x), wanted, strict=True):
            torch.testing.assert_close(a, b)
