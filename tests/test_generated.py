"""Specs drawn at random, through every pass and into kernels: values and gradients against the oracle.

A failure shrinks and is printed as `.attn`; it then belongs into CORPUS below, which is run first, every time.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, assume, given, note, seed, settings
from hypothesis.strategies import SearchStrategy
from narrowed import flat

import einfuse
from einfuse.dsl import compile_text
from einfuse.ir import Cascade, Flat, Scalar, SpecError, interpret
from einfuse.ir.attained import shared
from einfuse.ir.passes import canonicalise, differentiate, pipeline, stages
from einfuse.ir.passes.backward import adjoint
from einfuse.ir.passes.choose import Scores
from einfuse.runtime import binding
from einfuse.runtime.backends import BackendName
from einfuse.runtime.given import Given
from einfuse.runtime.scatter import accumulate, contracted
from einfuse.runtime.verify import Shape, example_inputs, example_sizes
from einfuse.testing import programs, selections, specs

SHAPE = Shape(batch=2, heads=2, queries=7, keys=9, widths=(3, 4), group=2)
RELAXED = settings(suppress_health_check=list(HealthCheck))

HEAD = """attention past(window: int = 4) over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
"""
CORPUS = {
    "a maximum that is no mere stabiliser": """  s = sum[d](q * k) where j <= i
  m = max[j](s)
  p = exp(s - m) - exp(-m)
  o[i, e] = sum[j](p / (sum[j](abs(p)) + 0.01) * v)
  out o
}""",
    "a normaliser whose reference is a row scalar": """  s = sum[d](q * k) where j <= i
  m = max(max[j](s), 0)
  p = exp(s - m)
  o[i, e] = sum[j](p / (exp(-m) + sum[j](p)) * v)
  out o
}""",
    "normalised keys in a ragged last block": """  kn[j, d] = k / sqrt(sum[d](k * k))
  s = sum[d](q * kn) where j <= i + 3
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}""",
    "rows that see nothing": """  s = sum[d](q * k) where j + 3 <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}""",
    "a sum over fewer points than its scores": """  s = sum[d](q * k) where j <= i
  o[i, e] = sum[j](softmax[j](s) * v where j % 2 == 0)
  out o
}""",
    "gradients under two masks": """  in bias[b, h, i, j]
  s = sum[d](q * k) + bias where j <= i
  p = exp(s - max[j](s))
  o[i, e] = sum[j](p * v where j % 2 == 0)
  out o
}""",
    "a mean of more points than the sum that reads it": """  s = sum[d](q * k)
  mu = sum[j](s) / count[j](s)
  o[i, e] = sum[j]((s - mu) * v where j % 2 == 0)
  out o
}""",
    "a vector made before the loop and repeated in it": """  in c[h, d]
  f = elu(q) + 1
  s = sum[d](q * k)
  l = sum[j](exp(s - max[j](s))) + sum[d](f * abs(c))
  o[i, e] = sum[j](exp(s - max[j](s)) * v) / l
  out o
}""",
    "a table read at a computed bucket": """  in table[h, 4]
  bucket[i, j] = min(abs(i - j), 3)
  s = sum[d](q * k) + table[h, bucket]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}""",
    "a mask that contradicts itself": """  s = sum[d](q * k) where (j <= i) and (not (j <= i))
  p = exp(s - max[j](s))
  o[i, e] = sum[j](p * v)
  out o
}""",
    "one live key, whose weight the largest score takes back": """  in prefix[b]: int
  s = sum[d](q * k) where j < min(prefix[b], 1)
  p = exp(s - max[j](s))
  o[i, e] = sum[j](p * v)
  out o
}""",
    "choices of features behind the fold": """  s = sum[d](q * k where d < 2)
  z = sum[j](s * v where e > 0)
  o[i, e] = z * sum[d](q if q > 0 else 0.1 * q) + sum[d](abs(q))
  out o
}""",
}

DERIVED = {
    "two vectors normalised inside one product": """  s = sum[d](l2_normalise[d](q) * l2_normalise[d](k)) where j <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}""",
    "a maximum of what is scaled by a row sum, as a factor": """  s = sum[d](q * k) where j <= i
  l = sum[j](exp(s))
  top = max[j](l * s)
  o[i, e] = sum[j]((s + top) * v)
  out o
}""",
    "a maximum over rows of their sums": """  s = sum[d](q * k) where j <= i
  l[i] = sum[j](exp(s))
  top = max[i](l)
  o[i, e] = sum[j](s * v) * l / top
  out o
}""",
    "features alone, and an output": """  in w[h, d]
  t[d] = w / sum[d](w * w)
  s = sum[d](q * t * k) where j <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o, t
}""",
    "a kernel whose inputs do not tell all its sizes": """  mu[d] = mean[j](k)
  s = sum[d](q * (k - mu)) where j <= i
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}""",
    "a maximum of normalised weights that the backward reads": """  s = sum[d](q * k) where j <= i
  n = sum[j](softplus(s))
  r = softplus(s) / n
  top = max[j](r)
  o[i, e] = sum[j]((r / top) ^ 2 * v)
  out o
}""",
    "a sum under a condition, as a factor of one without": """  s = sum[d](q * k)
  n = sum[j](exp(-s))
  l = sum[j](exp(s) where j % 2 == 0)
  z = sum[j](l * abs(s))
  o[i, e] = sum[j](s * v) * z / n
  out o
}""",
    "conditions on features": """  s = sum[d](q * k where d < 2)
  z = sum[j](softmax[j](s) * v where e > 0)
  o[i, e] = z + 1 where i < 3 and e > 1
  out o
}""",
    "a mean of keys that a condition on features leaves none of in some rows": """  rank n: feature = 2
  in u[b, n, j, d]
  s[n, i, j] = sum[d](q * u) where n < i and j <= i
  mu[n, i] = sum[j](s) / count[j](s)
  o[n, i, e] = sum[j]((s - mu) * v)
  out o
}""",
    "a mean of scores that a condition on them leaves none of in some rows": """  s = sum[d](q * k)
  t = s where s > 2.5
  mu = sum[j](t) / count[j](t)
  o[i, e] = sum[j]((t - mu) * v)
  out o
}""",
    "a root of a sum of squares that a condition leaves none of in some rows": """  rank n: feature = 2
  in u[b, n, j, d]
  s[n, i, j] = sum[d](q * u) where n < i and j <= i
  z[n, i] = sqrt(sum[j](s * s))
  o[n, i, e] = sum[j](s / z * v)
  out o
}""",
    "a condition on scores and their mean": """  s = sum[d](q * k) where j <= i
  mu = sum[j](s) / (i + 1)
  t = s where s >= mu
  o[i, e] = sum[j](softmax[j](t) * v)
  out o
}""",
    "conditions on what is computed of keys, of queries and of both": """  n[j] = sum[d](k * k)
  p = softmax[j](sum[d](q * k)) where n > 1
  top = max[j](p)
  w[i, j] = p where p > 0.1 and top < 0.9
  o[i, e] = sum[j](w * v)
  out o, w
}""",
    "an output of its own rank under a condition": """  kk[j] = sum[d](k * k) + 1 where j > 1
  o[i, e] = sum[j](softmax[j](sum[d](q * k)) * v)
  out o, kk
}""",
    "a rank that nothing uses, of a size that the linear form does not know": """  rank w: key = (Nk + 1) // 2
  s = sum[d](q * k) where j <= i
  o[i, e] = sum[j](s * v where j % 2 == 0)
  out o
}""",
    "a gradient whose two factors come from different kernels": """  rank n: feature = 3
  in u[h, n, d]
  t[n, i] = sum[d](q * u) where n < 2
  low[n] = tanh(0.3 * min(min[i](tanh(0.1 * t) where n < 2), 9))
  o[i, e] = sum[j](sigmoid(sum[d](q * k)) * v)
  out o, low
}""",
    "a maximum of features, added to all scores of a softmax": """  rank n: feature = 3
  in u[h, n, d]
  t[n, i] = sum[d](q * u)
  s = sum[d](q * k) + max[n](t)
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}""",
    "a table behind the condition of another statement": """  in table[h, W]
  s = sum[d](q * k) where 0 <= i - j < W
  bias = table[h, i - j]
  o[i, e] = sum[j](softmax[j](s + bias) * v)
  out o
}""",
}
"""These failed before any kernel was built: the plainest back end shows it."""


CHOOSING = {
    "rows without a slot": """  rank n: feature = 2
  sel[i, n] = topk[j -> n](-abs(i - j) where j > 50)
  s[i, n] = sum[d](q * k[b, h // group, sel[i, n], d])
  o[i, e] = sum[n](softmax[n](s) * v[b, h // group, sel[i, n], e])
  out o, sel
}""",
    "gradients of pairs, of slots that may not exist": """  rank n: feature = 2
  sel[i, n] = topk[j -> n](-abs(i - j) where j > 7)
  s[i, n, j] = sum[d](q * k[b, sel[i, n] % 2, j, d])
  p[i, n, j] = softplus(s)
  o[i, e] = sum[n](sum[j](p * v[b, sel[i, n] % 2, j, e]))
  out o
}""",
    "a part of a list, and the list as an output": """  rank n: feature = 4
  sel[i, n] = topk[j -> n](sum[d](q * k) where j <= i)
  kept[i, n] = sel where n < 1 + i % 3
  s = sum[d](q * k) where j in kept[i]
  o[i, e] = sum[j](softmax[j](s) * v)
  out kept, o, sel
}""",
}


def close(found: torch.Tensor, truth: torch.Tensor, what: str) -> None:
    finite = torch.isfinite(truth)
    a, b = found[finite], truth[finite]
    if a.dtype != b.dtype or not torch.allclose(a, b, rtol=1e-7, atol=1e-7):  # a tenth of the time of what says where
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7, msg=lambda m: f"{what}: {m}")


def check_passes(c: Cascade) -> None:
    """Kernel by kernel: every pass means the same, and the derived gradients (fused themselves) are autograd's."""
    sizes = example_sizes(c, SHAPE)
    x = example_inputs(c, torch.float64, 1, SHAPE)
    truth = interpret(c, x, sizes)
    for stage in stages.run(flat(c)):
        x |= interpret(stage, x, sizes)
        check_stage(stage, {t.name: x[t.name] for t in stage.inputs if t.name in x}, sizes)
    for name, value in truth.items():
        close(x[name], value, name)  # type: ignore[arg-type]  # an output is a tensor


@functools.cache  # parts draw some texts again
def check_text(text: str) -> None:
    check_passes(compile_text(text))


def differentiable(x: dict[str, torch.Tensor | Scalar]) -> dict[str, torch.Tensor | Scalar]:
    """The same arguments; floats are leaves."""
    return {
        n: v.detach().clone().requires_grad_() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for n, v in x.items()
    }


def check_stage(c: Cascade, x: dict[str, torch.Tensor | Scalar], sizes: dict[str, int]) -> None:
    leaves = differentiable(x)
    truth = interpret(c, leaves, sizes)

    def observe(stage: str, k: Cascade) -> None:
        with torch.no_grad():
            found = interpret(k, leaves, sizes)
        for name, value in truth.items():
            close(found[name], value, f"{name} after {stage}")

    pipeline.run(c, 4, 2, observe=observe)
    if isinstance(c, Flat):
        truth = interpret(shared(c), leaves, sizes)  # nearly equal values share a gradient, in float64 as well
    moving = {n: o for n, o in truth.items() if o.requires_grad}
    if not moving:  # a stage of whole numbers, such as how many keys a mask leaves
        return
    wanted = [n for n, v in leaves.items() if isinstance(v, torch.Tensor) and v.requires_grad]
    directions = {n: torch.randn(o.shape, dtype=torch.float64) for n, o in truth.items()}
    tensors = {n: v for n, v in leaves.items() if isinstance(v, torch.Tensor)}
    expected = torch.autograd.grad(
        list(moving.values()), [tensors[n] for n in wanted], [directions[n] for n in moving], allow_unused=True
    )
    with torch.no_grad():
        found = derived_gradients(c, leaves, sizes, directions, wanted)
    for name, g in zip(wanted, expected, strict=True):
        zero = torch.zeros_like(tensors[name])
        close(found.get(name, zero), zero if g is None else g, f"d {name}")


def derived_gradients(
    c: Cascade,
    x: dict[str, torch.Tensor | Scalar],
    sizes: dict[str, int],
    directions: dict[str, torch.Tensor],
    wanted: list[str],
) -> dict[str, torch.Tensor]:
    canonical = canonicalise.run(flat(c))
    backward = differentiate.run(canonical, wanted)
    outs = (*canonical.outs, *(n for n in backward.saved if n not in canonical.outs))
    env = {
        **x,
        **interpret(replace(canonical, outs=outs), x, sizes),
        **{adjoint(n): g for n, g in directions.items()},
    }
    tensors = {n: v for n, v in x.items() if isinstance(v, torch.Tensor)}
    numbers = {n: v for n, v in x.items() if not isinstance(v, torch.Tensor)}
    total: dict[str, torch.Tensor] = {}
    for cascade, parts in backward.cascades:
        found = interpret(pipeline.run(cascade, 4, 4), env, sizes)
        env |= found
        for part in parts:
            known = {n: v for n, v in env.items() if isinstance(v, torch.Tensor)}
            accumulate(total, cascade, *contracted(part, known), Given(tensors, numbers, sizes))
    return total


@functools.cache
def check_cut(text: str) -> None:
    """Lists made step by step are those of the whole, and what reads them gives its values and gradients."""
    attention = einfuse.compile(text, backend="torch")
    c, selection = attention.cascade, attention.selection
    assert selection is not None
    selection.interpreted |= set(selection.scorers)  # the cut alone is under test
    sizes, drawn = example_sizes(c, SHAPE), differentiable(example_inputs(c, torch.float64, 1, SHAPE))
    tensors, numbers = binding.arguments(c, (), drawn)
    x = {**tensors, **numbers}
    known = selection(x)
    lists = tuple(y.target for y in selection.chosen.steps if isinstance(y, Scores))
    truth = interpret(replace(c, outs=tuple(dict.fromkeys((*c.outs, *lists)))), x, sizes)
    for name in lists:
        assert torch.equal(truth[name].long(), known[name].clamp_min(-1)), name  # type: ignore[union-attr]  # -1 in a slot without a point
    rest = selection.rest.cascade
    mine = {t.name: known[t.name] for t in rest.inputs}
    found = interpret(rest, mine, Given.of(rest, *binding.arguments(rest, (), mine)).sizes)
    for name, value in found.items():
        close(value, truth[name], name)
    names = [n for n in found if truth[n].requires_grad]
    leaves = {n: v for n, v in tensors.items() if v.requires_grad}
    if names:
        sums = (torch.stack([side[n].sin().sum() for n in names]).sum() for side in (found, truth))
        gradients = (torch.autograd.grad(s, list(leaves.values()), materialize_grads=True, allow_unused=True) for s in sums)
        for name, a, b in zip(leaves, *gradients, strict=True):
            close(a, b, f"d {name}")


@functools.cache
def check_kernels(text: str, backend: BackendName, dtype: str = "float32") -> None:
    attention = einfuse.compile(text)
    certificate = einfuse.verify(attention, backends=[backend], dtypes=[dtype], shape=SHAPE, brief=True)
    assert certificate.ok, [r for r in certificate.rows if not r.ok]


@pytest.mark.parametrize("text", [*CORPUS.values(), *DERIVED.values()], ids=[*CORPUS, *DERIVED])
def test_past_failures_through_the_passes(text: str) -> None:
    check_passes(compile_text(HEAD + text))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "triton", "torch"])
@pytest.mark.parametrize("text", CORPUS.values(), ids=list(CORPUS))
def test_past_failures_through_kernels(text: str, backend: BackendName) -> None:
    check_kernels(HEAD + text, backend)


@pytest.mark.parametrize("text", DERIVED.values(), ids=list(DERIVED))
def test_past_failures_through_tiled_torch(text: str) -> None:
    check_kernels(HEAD + text, "torch")


@pytest.mark.parametrize("text", CHOOSING.values(), ids=list(CHOOSING))
def test_past_failures_of_choices(text: str) -> None:
    check_cut(HEAD + text)
    check_kernels(HEAD + text, "torch")


def drawn(texts: SearchStrategy[str], part: int, count: int) -> Callable[[Callable[[str], None]], Callable[[], None]]:
    """A check of so many texts, the same in every run: those of a part, of several that run side by side."""

    def of(check: Callable[[str], None]) -> Callable[[], None]:
        @seed(part)
        @given(texts)
        @settings(RELAXED, derandomize=False, database=None, max_examples=count)
        def noted(text: str) -> None:
            note(text)
            check(text)

        return noted

    return of


@pytest.mark.slow
@given(specs())
@settings(RELAXED, max_examples=25)
def test_drawn_specs_through_the_passes(text: str) -> None:
    note(text)
    check_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
def test_many_drawn_specs_through_the_passes(part: int) -> None:
    """150 in all, in parts that run side by side."""

    @drawn(specs(), part, 30)
    def check(text: str) -> None:
        check_text(text)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_drawn_specs_through_cpu_kernels(part: int) -> None:
    """36 in all."""

    @drawn(specs(), part, 6)
    def check(text: str) -> None:
        check_kernels(text, "cpu")

    check()


@pytest.mark.slow
@given(specs())
@settings(RELAXED, max_examples=10)
def test_drawn_specs_through_tiled_torch(text: str) -> None:
    note(text)
    check_kernels(text, "torch")


@pytest.mark.slow
@given(specs())
@settings(RELAXED, max_examples=12)
def test_drawn_specs_through_triton(text: str) -> None:
    note(text)
    check_kernels(text, "triton")


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("how", ["passes", "loops", "cpu", "triton"])
def test_drawn_programs(how: str, part: int) -> None:
    """60 through the passes, 60 through the reference interpreter of plans, 8 and 4 through kernels: half in fp32, half in bf16."""
    count = {"passes": 30, "loops": 30, "cpu": 4, "triton": 2}[how]

    @drawn(programs(), part, count)
    def check(text: str) -> None:
        try:
            if how == "passes":
                check_text(text)
            else:
                check_kernels(text, how, ("float32", "bfloat16")[part])
        except SpecError as refused:  # scores that are summed into rows which scores are made of again, and their gradients
            assume(not re.search("(stored|holds a value) for all pairs", str(refused)))
            raise

    check()


@pytest.mark.slow
@pytest.mark.parametrize("part", range(5))
@pytest.mark.parametrize(("how", "count"), [("torch", 100), ("cpu", 8), ("triton", 4)], ids=["interpretation", "cpu", "triton"])
def test_drawn_choices(how: BackendName, count: int, part: int) -> None:
    """500 by interpretation, 40 and 20 through kernels: lists against the scores of the oracle, the rest with the lists of the kernels."""

    @drawn(selections(), part, count)
    def check(text: str) -> None:
        if how == "torch":
            check_cut(text)
            return
        try:
            check_kernels(text, how)
        except SpecError as refused:  # a kernel holds a value for all blocks of a row only where it knows how many there are
            assume("must be known to build a kernel" not in str(refused))
            raise

    check()
