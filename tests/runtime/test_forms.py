"""Attentions with two forms: both are right, and the choice between them follows shapes, rates and what is asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import einfuse
from einfuse.runtime import cache, crossover
from einfuse.runtime.backends import BackendName
from einfuse.runtime.crossover import Setting, Speed
from einfuse.runtime.forms import FormName
from einfuse.runtime.verify import Shape, example_inputs

DOC = (Path(__file__).parents[2] / "docs" / "linear.md").read_text(encoding="utf-8")
TEXT = """attention t over b, h {{
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  s = sum[d](q * k) / D {mask}
  p = {p}
  l = 4 + sum[j](p)
  o[i, e] = sum[j](p * v) / l
  out o, l
}}"""
CASES = {
    "sums": TEXT.format(mask="", p="s"),
    "flat sums": TEXT.format(mask="", p="1 + s + 0.5 * s * s"),
    "scan": TEXT.format(mask="where j <= i", p="s * 0.9 ^ (i - j)"),
    "flat scan": TEXT.format(mask="where j <= i", p="1 + s + s * s"),
}
CPU = torch.device("cpu")


def drawn(attention: einfuse.Attention, dtype: torch.dtype = torch.float64, n: int = 70) -> dict[str, torch.Tensor]:
    found = example_inputs(attention.cascade, dtype, 0, Shape(1, 2, n, n, (4, 5), 2))
    return {k: x for k, x in found.items() if isinstance(x, torch.Tensor)}


@pytest.mark.parametrize("name", CASES)
def test_both_forms_are_the_oracle(name: str) -> None:
    attention = einfuse.compile(CASES[name], backend="torch")
    assert attention.forms.found is not None
    assert attention.forms.found.kind == name
    x = {n: t.requires_grad_() for n, t in drawn(attention).items()}
    wanted = attention.reference(**x, dtype=torch.float64)
    directions = [torch.randn_like(o) for o in wanted]
    truth = torch.autograd.grad(wanted, list(x.values()), directions)
    for form in ("quadratic", "linear"):
        outs = attention.with_form(form)(**x)
        torch.testing.assert_close(outs, wanted, rtol=1e-10, atol=1e-10)
        for found, g in zip(torch.autograd.grad(outs, list(x.values()), directions), truth, strict=True):
            torch.testing.assert_close(found, g, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_outputs_have_the_same_dtypes(name: str) -> None:
    attention = einfuse.compile(CASES[name], backend="torch")
    x = drawn(attention, torch.bfloat16)
    assert [o.dtype for o in attention.with_form("linear")(**x)] == [o.dtype for o in attention.with_form("quadratic")(**x)]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_autocast_leaves_what_is_summed_on_the_way(name: str, backend: BackendName) -> None:
    linear = einfuse.compile(CASES[name], backend=backend, form="linear")
    x = {n: t.requires_grad_() for n, t in drawn(linear, torch.float32).items()}

    def run(autocast: bool) -> tuple[torch.Tensor, ...]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            outs = linear(**(x if autocast else {n: t.bfloat16() for n, t in x.items()}))
            outs = outs if isinstance(outs, tuple) else (outs,)
            return (*outs, *torch.autograd.grad(outs, list(x.values()), [torch.ones_like(o) for o in outs]))

    torch.testing.assert_close(run(True), run(False), rtol=0, atol=0)


def test_what_is_asked_for_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = einfuse.compile(CASES["sums"], backend="torch", form="linear")
    asked(**drawn(asked))
    assert asked.forms.linears
    plain = einfuse.compile(CASES["sums"], backend="torch", form="quadratic")
    plain(**drawn(plain))
    assert not plain.forms.linears
    with pytest.raises(ValueError, match="the form is one of auto, quadratic, linear, found 'fast'"):
        einfuse.compile(CASES["sums"], form="fast")  # type: ignore[arg-type]  # that is the point


def test_the_environment_overrides_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    attention = einfuse.compile(CASES["sums"], backend="torch")
    x = drawn(attention, n=4)
    attention(**x)
    assert not attention.forms.linears, "four points are faster in the quadratic form"
    monkeypatch.setenv("EINFUSE_FORM", "linear")
    attention(**x)
    assert attention.forms.linears
    full = einfuse.compile("full", backend="torch")
    full(*(torch.randn(1, 2, 5, 4) for _ in range(3)))  # has one form


@pytest.mark.slow
@pytest.mark.parametrize("form", ["auto", "linear"])
def test_a_graph_has_the_form_that_was_asked_for(form: FormName) -> None:
    attention = einfuse.compile(CASES["sums"], backend="torch", form=form)
    x = drawn(attention)
    captured = torch.compile(attention, fullgraph=True, backend="eager")
    torch.testing.assert_close(captured(**x), attention.with_form("quadratic")(**x))


@pytest.mark.parametrize("name", ["scan", "flat scan"])
def test_a_linear_form_goes_token_by_token(name: str) -> None:
    attention = einfuse.compile(CASES[name], backend="torch", form="linear")
    x = drawn(attention, n=11)
    wanted, _ = attention(**x)
    state, rows = None, []
    for lo, hi in ((0, 4), (4, 5), (5, 11)):
        (o, _), state = attention.step(state, **{n: t[:, :, lo:hi] for n, t in x.items()})
        rows.append(o)
    torch.testing.assert_close(torch.cat(rows, 2), wanted)


def test_without_a_linear_form_none_can_be_asked_for() -> None:
    with pytest.raises(einfuse.SpecError, match="causal has no linear form: s_max is a max over j"):
        einfuse.compile("causal", form="linear")
    attention = einfuse.compile("causal")
    assert attention.forms.found is None
    assert "max over j" in str(attention.forms.obstacle)


def test_a_rank_that_no_kernel_holds_has_no_linear_form() -> None:
    text = TEXT.format(mask="where j <= i", p="s ^ 4")
    attention, x = einfuse.compile(text, backend="torch"), torch.zeros(1, 2, 3, 24)
    sizes = {"B": 1, "H": 2, "Nq": 3, "Nk": 3, "D": 24, "E": 24, "group": 1}
    assert attention.forms.found is not None
    assert attention.forms.fits(sizes | {"D": 8}) is None
    assert "D * D * D * D = 331776 features" in str(attention.forms.fits(sizes))
    assert attention.forms.choose(sizes | {"Nq": 10**7, "Nk": 10**7}, x, False) == "quadratic"
    linear = attention.with_form("linear")
    for call in (lambda: linear(x, x, x), lambda: linear.step(None, x, x, x)):
        with pytest.raises(einfuse.SpecError, match="331776 features, and a state holds at most 8192"):
            call()


def test_a_scan_needs_as_many_keys_as_queries() -> None:
    text = CASES["scan"].replace("j <= i", "j <= i + Nk - Nq")
    x = drawn(einfuse.compile(text))
    short = {**x, "q": x["q"][:, :, -9:]}
    attention = einfuse.compile(text, backend="torch")
    assert attention.forms.choose({"B": 1, "H": 2, "Nq": 9, "Nk": 10**7, "D": 4, "E": 5}, x["q"], False) == "quadratic"
    torch.testing.assert_close(attention(**short), attention.reference(**short, dtype=torch.float64))
    with pytest.raises(einfuse.SpecError, match="found 9 queries and 70 keys"):
        attention.with_form("linear")(**short)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_the_choice_turns_at_the_crossover(name: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossover, "known", lambda kind, setting: Speed(2e-5, 1e11 if kind == "quadratic" else 5e10))
    forms = einfuse.compile(CASES[name]).forms
    sizes = {"B": 1, "H": 2, "Nq": 1, "Nk": 1, "D": 32, "E": 32, "group": 1}
    n = forms.crossover(sizes, torch.float32, CPU, training)
    assert 8 < n < 20000
    x = torch.empty(0)
    at = [forms.choose(sizes | {"Nq": m, "Nk": m}, x, training) for m in (n // 2, 2 * n)]
    assert at == ["quadratic", "linear"]
    monkeypatch.setattr(crossover, "known", lambda kind, setting: Speed(2e-5, 1e11))
    assert forms.crossover(sizes, torch.float32, CPU, training) < n


def test_a_speed_explains_two_calls() -> None:
    speed = Speed(3e-5, 2e11)
    small, large = ((work, speed.seconds(4, work)) for work in (1e6, 1e9))
    found = Speed.of(4, small, large)
    assert (found.launch, found.rate) == pytest.approx((speed.launch, speed.rate))


@pytest.mark.slow
def test_a_speed_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "folder", lambda: tmp_path)
    measured: list[float] = []

    def timed(run: object, device: object) -> float:
        measured.append(1.0)
        return float(len(measured))

    monkeypatch.setattr(crossover, "timed", timed)
    attention = einfuse.compile(CASES["sums"], backend="torch")
    sizes = {"B": 1, "H": 8, "Nq": 4096, "Nk": 4096, "D": 64, "E": 64, "group": 1}
    x = torch.empty(0)
    first = attention.forms.choose(sizes, x, False)
    speeds = [crossover.known(kind, Setting.of(x, False, 64)) for kind in ("quadratic", "sums")]
    assert first == "linear" if not measured else all(speeds)
    monkeypatch.setattr(crossover, "NEAR", 1e9)
    again = einfuse.compile(CASES["sums"], backend="torch")
    again.forms.choose(sizes, x, False)
    assert len(measured) == 4, "a small and a large call of each form"
    assert all(crossover.known(kind, Setting.of(x, False, 60)) for kind in ("quadratic", "sums"))
    einfuse.compile(CASES["sums"], backend="torch").forms.choose(sizes, x, False)
    assert len(measured) == 4, "a small and a large call of each form"


@pytest.mark.slow
def test_the_documented_example_runs() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    exec(compile(code, "linear.md", "exec"), {})


def test_the_documented_spec_is_what_it_says() -> None:
    (text,) = re.findall(r"^```attn\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
    found = einfuse.compile(text).forms.found
    assert found is not None
    assert (found.kind, found.rank({"D": 64})) == ("flat sums", 64 * 33 + 64 + 1)
