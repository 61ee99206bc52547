"""No text, however broken, causes another exception than SpecError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutated import broken

from einfuse import dsl
from einfuse.ir import SpecError
from einfuse.ir import text as ir_text
from einfuse.ir.verify import verify
from einfuse.testing import specs

pytestmark = pytest.mark.slow


def elaborated(text: str) -> None:
    """A text either is refused or becomes a cascade that keeps every rule of the IR and prints to what reads back."""
    try:
        cascade = dsl.compile_text(text)
    except SpecError:
        return
    assert ir_text.parse(ir_text.show(verify(cascade))) == cascade


@given(broken())
@settings(max_examples=300)
def test_broken_specs(text: str) -> None:
    elaborated(text)
    with contextlib.suppress(SpecError):
        assert dsl.parse(dsl.format_text(text)) == dsl.parse(text)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=100)
def test_any_bytes(data: bytes) -> None:
    elaborated(data.decode("utf-8", "replace"))


@given(specs())
@settings(max_examples=60)
def test_drawn_specs_are_good(text: str) -> None:
    verify(dsl.compile_text(text))
