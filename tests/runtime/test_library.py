"""Every spec of the library: values and all gradients against the float64 oracle, in two dtypes, on two back ends."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from zlib import crc32

import pytest

import einfuse
from einfuse.runtime.backends import BackendName
from einfuse.runtime.specs import library
from einfuse.runtime.verify import Shape

SPECS = library()
SMALL = Shape(2, 2, 19, 27, (12, 20), 2)
SHAPES = {
    "talking_heads": Shape(2, 2, 19, 27, (4, 8), 2),  # heads that are mixed are held whole: a block has two head axes more
    "atlas": Shape(1, 1, 19, 19, (6, 7), 1),  # matrices of a state times matrices of a state, which an interpreter runs
}
COMBINATIONS: list[tuple[BackendName, str]] = [(b, d) for b in ("cpu", "triton") for d in ("float32", "bfloat16")]
EVERYWHERE = ("causal", "alibi_window", "t5_bias", "document", "cosine")
OTHERS = [(n, COMBINATIONS[crc32(n.encode()) % 4]) for n in sorted(set(SPECS) - set(EVERYWHERE))]
"""Some specs on both back ends in both dtypes, every other one on one of the four, the same whatever specs there are beside it; `einfuse verify
--all` does all of them."""


def check(name: str, combination: tuple[BackendName, str], shape: Shape | None) -> None:
    backend, dtype = combination
    certificate = einfuse.verify(
        einfuse.compile(name), backends=[backend, "torch"], dtypes=[dtype], seed=1, shape=shape, brief=True
    )
    assert certificate.rows
    assert certificate.ok, [r for r in certificate.rows if not r.ok]


@pytest.mark.slow
@pytest.mark.parametrize(
    "combination",
    [pytest.param(c, marks=pytest.mark.optimised if c == ("cpu", "float32") else (), id="-".join(c)) for c in COMBINATIONS],
)
@pytest.mark.parametrize("name", EVERYWHERE)
def test_kernels_are_right_everywhere(name: str, combination: tuple[BackendName, str]) -> None:
    check(name, combination, None)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "combination"), OTHERS, ids=lambda x: x if isinstance(x, str) else "-".join(x))
def test_kernels_are_right(name: str, combination: tuple[BackendName, str]) -> None:
    check(name, combination, SHAPES.get(name, SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal", "document", "cosine"])
@pytest.mark.parametrize(
    "shape", [Shape(1, 2, 1, 1, (1, 1), 1), Shape(1, 2, 7, 129, (3, 65), 2), Shape(2, 2, 130, 64, (64, 8), 1)], ids=str
)
def test_odd_shapes(name: str, shape: Shape) -> None:
    certificate = einfuse.verify(einfuse.compile(name), backends=["cpu"], dtypes=["float32"], shape=shape, brief=True)
    assert certificate.ok, [r for r in certificate.rows if not r.ok]


def lines(text: str) -> int:
    """How many lines of code a spec has."""
    code = re.sub(r'"""(?:.|\n)*?"""|#[^\n]*', "", text)
    return sum(bool(line.strip()) for line in code.splitlines())


def test_half_of_all_specs_have_twelve_lines_or_fewer() -> None:
    assert lines('"""A doc\nstring."""\n\nattention a over b {  # a comment\n  in x[b]\n  out x\n}\n') == 4
    assert statistics.median(lines(p.read_text(encoding="utf-8")) for p in SPECS.values()) <= 12


@pytest.mark.parametrize("path", SPECS.values(), ids=lambda p: p.stem)
def test_a_spec_is_short_and_says_where_it_comes_from(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert lines(text) <= 30
    doc = einfuse.dsl.signature(einfuse.dsl.parse(text)).doc
    assert re.search(r"\(.*\b(19|20)\d\d\b.*\)|no paper", doc, re.DOTALL), "the docstring names the paper and the year"


def test_list_names_what_compile_takes() -> None:
    listed = einfuse.list_specs()
    assert {s.name for s in listed} == set(SPECS)
    for name in (
        "full",
        "causal",
        "alibi",
        "sliding_window",
        "softcap",
        "t5_bias",
        "document",
        "prefix",
        "sink",
        "sigmoid",
        "rope",
    ):
        assert name in SPECS
    assert all(s.paper and s.family for s in listed)


def test_a_library_that_was_listed_before_is_parsed_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = einfuse.list_specs()
    monkeypatch.setattr(einfuse.dsl, "parse", None)
    assert einfuse.list_specs() == listed


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(einfuse.SpecError, match="no spec alibbi") as caught:
        einfuse.compile("alibbi")
    assert "alibi" in str(caught.value)
    with pytest.raises(einfuse.SpecError, match="there is no file"):
        einfuse.compile("nowhere/none.attn")
