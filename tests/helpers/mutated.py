"""Specs of the library with a few tokens deleted, doubled, replaced or swapped."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
TEXTS = [p.read_text(encoding="utf-8") for p in sorted((ROOT / "library" / "specs").rglob("*.attn"))]
TEXTS.append((ROOT / "dsl" / "prelude.attn").read_text(encoding="utf-8") + TEXTS[0])
TOKENS = re.compile(r'"""|\w+|[<>=!]=|//|\s+|.')
WORDS = sorted(
    {t for text in TEXTS for t in TOKENS.findall(text) if not t.isspace()} | {"0", "9" * 30, "1e400", "-", "return", "over"}
)


@st.composite
def broken(draw: st.DrawFn) -> str:
    """A valid spec that is most likely none any more."""
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
