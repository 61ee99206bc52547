"""Every spec of the library: values and all gradients against the float64 oracle, in two dtypes, on two back ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import einfuse
from einfuse.runtime.backends import BackendName
from einfuse.runtime.compile import library
from einfuse.runtime.verify import Shape

SPECS = library()
SMALL = Shape(2, 2, 19, 27, (12, 20), 2)
MIXED_HEADS = Shape(2, 2, 19, 27, (4, 8), 2)  # heads that are mixed are held whole: a block has two head axes more
CANCELLING = {"gat": 8.0, "bahdanau": 4.0, "two_axes": 4.0}
"""Row sums of score gradients, which cancel exactly: what is left is rounding, of the saved output here and of the weights in eager."""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", SPECS)
def test_kernels_are_right(name: str, dtype: str, backend: BackendName) -> None:
    own = SPECS[name].parent.name in ("normaliser", "shapes")  # many kernels, and files of their own in tests/library
    factor = CANCELLING.get(name, 2.0)
    shape = MIXED_HEADS if name == "talking_heads" else SMALL if own else None
    certificate = einfuse.verify(einfuse.compile(name), backends=[backend], dtypes=[dtype], seed=1, shape=shape, factor=factor)
    assert certificate.rows
    assert certificate.ok, [r for r in certificate.rows if not r.ok]


@pytest.mark.parametrize("name", ["causal", "alibi_window", "sigmoid", "document", "cosine"])
@pytest.mark.parametrize(
    "shape", [Shape(1, 2, 1, 1, (1, 1), 1), Shape(1, 2, 7, 129, (3, 65), 2), Shape(2, 2, 130, 64, (64, 8), 1)], ids=str
)
def test_odd_shapes(name: str, shape: Shape) -> None:
    certificate = einfuse.verify(einfuse.compile(name), backends=["cpu"], dtypes=["float32"], shape=shape)
    assert certificate.ok, [r for r in certificate.rows if not r.ok]


@pytest.mark.parametrize("path", SPECS.values(), ids=lambda p: p.stem)
def test_a_spec_is_short_and_says_where_it_comes_from(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    code = re.sub(r'"""(?:.|\n)*?"""|#[^\n]*', "", text)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 16 + code.count("\ndef ")
    doc = einfuse.dsl.signature(einfuse.dsl.parse(text)).doc
    assert re.search(r"\(.*\b(19|20)\d\d\b.*\)|no paper", doc), "the docstring names the paper and the year"


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


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(einfuse.SpecError, match="no spec alibbi") as caught:
        einfuse.compile("alibbi")
    assert "alibi" in str(caught.value)
    with pytest.raises(einfuse.SpecError, match="there is no file"):
        einfuse.compile("nowhere/none.attn")
