"""Numbers of 8 bits with scales: the values of the attention on what they stand for, alone and from pages."""

from __future__ import annotations

import pytest
import torch

import einfuse
from einfuse import serving
from einfuse.ir import SpecError, interpret
from einfuse.ir.passes import quantise
from einfuse.runtime import binding
from einfuse.runtime.backends import BackendName
from einfuse.runtime.examples import Shape, example_inputs

DTYPES = {torch.int8: 1 / 127, torch.float8_e4m3fn: 1 / 16, torch.float8_e5m2: 1 / 8}
"""By what part of the largest value another one is off at most."""
AXES = {"token, head": (0, 1, 2), "head": (1,), "": (), "token": (0, 2), "head, feature": (1, 3)}


@pytest.mark.parametrize("name", ["causal", "alibi", "entmax15", "cosine", "l2", "residual_scores", "topk"])
@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_oracle_of_8_bits_is_that_of_what_they_stand_for(name: str, axes: str, dtype: torch.dtype) -> None:
    attention = einfuse.compile(name)
    given = example_inputs(attention.cascade, torch.float64, 0, Shape(2, 4, 5, 7, (3, 4), 2))
    found = quantise.run(
        attention.cascade, dict.fromkeys(("k", "v"), tuple(axes.split(", ")) if axes else ()), dtype != torch.int8
    )
    small, plain = dict(given), dict(given)
    for n in ("k", "v"):
        x = given[n]
        assert isinstance(x, torch.Tensor)
        assert found.kept[n] == AXES[axes]
        small[n], scale = serving.quantise(x, found.kept[n], dtype)
        small[found.scales[n]] = scale
        wide = scale[tuple(slice(None) if k in found.kept[n] else None for k in range(x.ndim))]
        plain[n] = small[n].to(x.dtype) * wide  # type: ignore[union-attr]  # a tensor
        assert (plain[n] - x).abs().max() <= x.abs().max() * DTYPES[dtype]
        if dtype != torch.int8:
            small[n] = small[n].to(x.dtype)  # type: ignore[union-attr]  # a tensor; the interpreter is given what a call would read
    one, other = (
        interpret(c, {**_defaults(c), **xs}, binding.sizes(c, {n: x for n, x in xs.items() if isinstance(x, torch.Tensor)}))  # type: ignore[arg-type]
        for c, xs in ((found.cascade, small), (attention.cascade, plain))
    )
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def _defaults(cascade: einfuse.ir.Cascade) -> dict[str, float]:
    return {t.name: t.default for t in cascade.inputs if t.param and t.default is not None}


@pytest.mark.parametrize("backend", ["torch", "cpu", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_plan_reads_8_bits_from_pages(dtype: torch.dtype, backend: BackendName) -> None:
    torch.manual_seed(0)
    attention = serving.quantised(einfuse.compile("causal", backend=backend), dtype, k="token, head", v="token, head")
    tokens = {n: torch.randn(40, 2, 16) for n in ("k", "v")}
    small = {n: serving.quantise(x, (0, 1), dtype) for n, x in tokens.items()}
    shapes = {n: torch.zeros(2, 16, dtype=dtype) for n in tokens} | {f"{n}_scale": (2,) for n in tokens}
    cache = serving.Cache.empty(attention, pages=8, width=8, table=5, batch=1, **shapes)  # type: ignore[arg-type]  # shapes and tokens
    cache.page[:] = torch.tensor([[6, 2, 0, 5, 1]])
    cache.length[:] = 40
    cache.append(
        torch.tensor([0, 40]), **{n: x for n, (x, _) in small.items()}, **{f"{n}_scale": s for n, (_, s) in small.items()}
    )
    q = torch.randn(3, 4, 16)
    plan = serving.plan(attention, cache, q=q, tiles=(4,))
    plan.update(torch.tensor([0, 3]))
    k, v = (x.float() * s[..., None] for x, s in small.values())
    rows = torch.zeros(1, 4, 40, 16)
    rows[0, :, 37:] = q.transpose(0, 1)
    truth = einfuse.compile("causal").reference(rows, k.transpose(0, 1)[None], v.transpose(0, 1)[None])[0, :, 37:]  # type: ignore[call-overload]
    torch.testing.assert_close(plan.run(q), truth.transpose(0, 1).float(), rtol=1e-5, atol=1e-5)


def test_a_scale_of_a_key_leaves_the_product() -> None:
    found = quantise.run(einfuse.compile("causal").cascade, {"k": ("token", "head")})
    products = [x for x in found.cascade.body if x.over == ("d",)]
    assert [ex.name for x in products for ex in x.map.args] == ["q", "k"]


def test_what_has_no_such_axis_is_refused() -> None:
    causal = einfuse.compile("causal")
    with pytest.raises(SpecError, match="causal has no float input key to quantise; it has q, k, v"):
        serving.quantised(causal, key="token")
    with pytest.raises(SpecError, match="k has no axis width that a scale could have; it has batch, head, token, feature"):
        serving.quantised(causal, k="width")
    with pytest.raises(SpecError, match="delta cannot be quantised: it is a scan"):
        serving.quantised(einfuse.compile("delta"), k="head")
    with pytest.raises(TypeError, match=r"values are written as torch.int8, .*_e4m3fn, torch.float8_e5m2, found torch.int16"):
        serving.quantise(torch.ones(2), (), torch.int16)
