"""The recipes of CONTRIBUTING.md: a function is one object and a line for each back end, a reducer one object, a pass one file and a line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from narrowed import only

import einfuse
from einfuse.codegen import plan
from einfuse.codegen.cpu import functions as cpp
from einfuse.codegen.pallas import functions as pallas
from einfuse.codegen.torch import functions as on_torch
from einfuse.codegen.triton import functions as triton
from einfuse.ir import FUNCTIONS, Cascade, call, const, meaning
from einfuse.ir.functions import Function
from einfuse.ir.passes import opt, registry
from einfuse.ir.passes.sequence import Pass
from einfuse.runtime.names import NAMES, BackendName

ROOT = Path(__file__).parents[1]
SPEC = """
attention cubes over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  o[i, e] = sum[j](softmax[j](cube(sum[d](q * k))) * v)
  out o
}
"""
CUBE = Function(
    "cube",
    1,
    "numeric",
    "float",
    lambda x: float(x) ** 3,
    torch=lambda torch, a: a**3,
    numpy=lambda np, a: np.power(a, 3),
    sympy=lambda sp, a: a**3,
    differential=lambda e, d: call("*", call("*", const(3), call("*", *2 * e.args)), d[0]),
    nonnegative=all,
    rises=True,
)


@pytest.fixture
def cube(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`CUBE` as if it stood in the table of functions, and its line in the table of each back end."""
    monkeypatch.setenv("EINFUSE_CACHE", str(tmp_path))
    for table in (FUNCTIONS, plan.FUNCTIONS):
        monkeypatch.setitem(table, "cube", CUBE)
    monkeypatch.setitem(meaning.TORCH, "cube", CUBE.of(torch))
    monkeypatch.setitem(
        cpp.FORMS, "cube", cpp.Form(lambda args, vector: "({0} * {0} * {0})".format(args[0].text), "({0} * {0} * {0})")
    )
    monkeypatch.setitem(triton.FORMS, "cube", lambda args, to: "{0} * {0} * {0}".format(args[0].text))
    for forms in (on_torch.FORMS, pallas.FORMS):
        monkeypatch.setitem(forms, "cube", "{0} * {0} * {0}")


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return ((q @ k.mT) ** 3).softmax(-1) @ v


def drawn() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, 1, n, 16) / 3 for n in (9, 21, 21)]


@pytest.mark.usefixtures("cube")
@pytest.mark.parametrize("backend", NAMES)
def test_every_back_end_has_a_function_that_was_added(backend: BackendName) -> None:
    if backend == "pallas":
        pytest.importorskip("jax")
    found = einfuse.compile(SPEC, backend=backend)(*drawn())
    torch.testing.assert_close(found, formula(*drawn()))


@pytest.mark.usefixtures("cube")
def test_a_function_that_was_added_has_a_derivative() -> None:
    found, expected = ([x.requires_grad_() for x in drawn()] for _ in range(2))
    only(einfuse.compile(SPEC, backend="torch")(*found)).sin().sum().backward()
    formula(*expected).sin().sum().backward()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_few_files_know_a_reducer() -> None:
    """Of `argmax`, its object, its meaning in words, and how the language reads it; passes and back ends do not name it."""
    files = [p for folder in ("ir", "dsl", "codegen", "runtime") for p in (ROOT / folder).rglob("*.py")]
    naming = {str(p.relative_to(ROOT)) for p in files if re.search(r"(?<!\.)\bargmax\b", p.read_text())}
    assert naming == {"ir/reducers.py", "ir/nodes.py", "dsl/modules.py", "dsl/select.py"}


def test_a_pass_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(cascade: Cascade) -> Cascade:
        return replace(cascade, name=f"{cascade.name}_again")

    toy = Pass("rename", renamed, does="another name", takes="any")
    monkeypatch.setattr(registry, "TRANSFORMS", (*registry.TRANSFORMS, toy))
    built = einfuse.compile(SPEC.replace("cube(", "tanh(")).cascade
    assert [c.name for c in opt.apply(opt.parse("canonicalise,rename"), built)] == ["cubes_again"]
    assert "| `rename` | another name |" in registry.table()
