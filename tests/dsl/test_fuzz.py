"""No text, however broken, causes another exception than SpecError."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einfuse import dsl
from einfuse.ir import SpecError
from einfuse.ir import text as ir_text
from einfuse.ir.verify import verify
from einfuse.testing import specs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TEXTS = [p.read_text(encoding="utf-8") for p in sorted((ROOT / "library" / "specs").rglob("*.attn"))]
TEXTS.append((ROOT / "dsl" / "prelude.attn").read_text(encoding="utf-8") + TEXTS[0])
TOKENS = re.compile(r'"""|\w+|[<>=!]=|//|\s+|.')
WORDS = sorted(
    {t for text in TEXTS for t in TOKENS.findall(text) if not t.isspace()} | {"0", "9" * 30, "1e400", "-", "return", "over"}
)


@st.composite
def broken(draw: st.DrawFn) -> str:
    """A valid spec with a few tokens deleted, doubled, replaced or swapped."""
    tokens = TOKENS.findall(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 4))):
        n = draw(st.integers(0, len(tokens) - 1))
        match draw(st.sampled_from(("delete", "double", "replace", "insert", "swap", "cut"))):
            case "delete":
                del tokens[n]
            case "double":
                tokens.insert(n, tokens[n])
            case "replace":
                tokens[n] = draw(st.sampled_from(WORDS))
            case "insert":
                tokens.insert(n, " " + draw(st.sampled_from(WORDS)) + " ")
            case "swap":
                m = draw(st.integers(0, len(tokens) - 1))
                tokens[n], tokens[m] = tokens[m], tokens[n]
            case "cut":
                del tokens[n : n + draw(st.integers(1, 20))]
        if not tokens:
            break
    return "".join(tokens)


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
