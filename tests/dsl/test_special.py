"""repeat, random, stop, and reductions over ranks of several kinds."""

from __future__ import annotations

import pytest
import torch

from einfuse import dsl
from einfuse.ir import Cascade, SpecError, interpret
from einfuse.ir.text import show_body

HEAD = "attention f{params} {{ rank i: query; rank j: key; rank d: feature\n in s[i, j] in x[i, d] in y[j, d]\n"


def built(body: str, params: str = "", **values: int) -> Cascade:
    return dsl.compile_text(HEAD.format(params=params) + body + "\n out o }", params=values)


def test_repeat_writes_its_steps_out() -> None:
    c = built(" o = repeat(2, t = max[j](s), t + sum[j](s - t))")
    assert show_body(c).splitlines() == [
        "  s_max[i] = max[j] s[i, j]",
        "  o_sum[i] = sum[j] s[i, j] - s_max[i]",
        "  t[i] = s_max[i] + o_sum[i]",
        "  o_sum_1[i] = sum[j] s[i, j] - t[i]",
        "  o[i] = t[i] + o_sum_1[i]",
    ]


def test_repeat_steps_names_together_and_leaves_outer_names_alone() -> None:
    c = built(" t = 7.0 + 0 * max[j](s)\n a = repeat(3, t = 1, u = 1, u, t + u)\n o = a + t")
    out = interpret(c, {"s": torch.zeros(2, 3)}, {"Nq": 2, "Nk": 3, "D": 1})["o"]
    assert out.tolist() == [10.0, 10.0]  # 1, 1, 2, 3 after three steps, and 7


def test_a_parameter_that_counts_is_known_at_compile_time() -> None:
    text = "def deep(x, n) = repeat(n, t = x, t * 2)\ndef deeper(x, m) = deep(x, m)\n"
    c = dsl.compile_text(
        text + HEAD.format(params="(steps: int = 1)") + " o = deeper(max[j](s), steps)\n out o }", params={"steps": 3}
    )
    assert all(t.name != "steps" for t in c.inputs)
    assert interpret(c, {"s": torch.ones(1, 1)}, {"Nq": 1, "Nk": 1, "D": 1})["o"].item() == 8


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (" o = repeat(i, t = 1, t)", "the count of a `repeat` is an integer known at compile time"),
        (" o = repeat(65, t = 1, t)", "the count of a `repeat`"),
        (" o = repeat(2, t = 1, u = 2, t)", "one next value for every name, found 2 starts and 1 next value"),
        (" o = repeat(2, s)", "`repeat` starts from a named value"),
        (" o = exp(2, t = 1, t)", "`exp` takes no `name = value`"),
        (" o = random(3)", "`random` takes a seed and at least one counter, all integers"),
        (" o = random(3, x)", "`random` takes a seed and at least one counter, all integers"),
    ],
)
def test_what_is_wrong_is_said(body: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        built(body)
    assert message in str(caught.value)


def test_stop_is_the_identity_without_a_gradient() -> None:
    c = built(" o = x * stop(x)")
    x = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
    out = interpret(c, {"x": x}, {"Nq": 1, "Nk": 1, "D": 1})["o"]
    assert out.item() == 9
    assert torch.autograd.grad(out.sum(), x)[0].item() == 3


def test_random_numbers_are_even_and_depend_on_every_counter() -> None:
    c = built(" o = random(11, i, j)")
    sizes = {"Nq": 128, "Nk": 128, "D": 1}
    u = interpret(c, {}, sizes)["o"]
    assert 0 <= u.min() < 1e-3
    assert 1 > u.max() > 0.999
    assert len(u.unique()) > 0.99 * u.numel()
    assert abs(u.mean() - 0.5) < 0.01
    for other in (u.roll(1, 0), u.roll(1, 1), u.mT):
        assert abs(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (" o = sum[j, d](x * y)", ["  xy[i, j] = sum[d] x[i, d] * y[j, d]", "  o[i] = sum[j] xy[i, j]"]),
        (" o = max[i, j](s)", ["  s_max[j] = max[i] s[i, j]", "  o[] = max[j] s_max[j]"]),
    ],
)
def test_one_reduction_inside_the_other(body: str, wanted: list[str]) -> None:
    assert show_body(built(body)).splitlines() == wanted
