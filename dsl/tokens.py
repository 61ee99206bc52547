"""The words and signs of the language, read from its grammar: what the formatter and the colours of editors are made of."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

GRAMMAR = Path(__file__).parent / "grammar" / "attn.lark"
SOFT = ("state", "from")
"""Words that are names wherever they do not stand for themselves."""
_TERMINAL = re.compile(r"^([A-Z]+): /(.*)/$", re.MULTILINE)
_QUOTED = re.compile(r'"([^"]+)"')


@dataclass(frozen=True, slots=True)
class Tokens:
    """``words`` and ``signs`` are what the grammar quotes, ``patterns`` the regular expressions of its other terminals, by name."""

    words: tuple[str, ...]
    signs: tuple[str, ...]
    patterns: dict[str, str]


def read(grammar: str) -> Tokens:
    """The tokens of a grammar in lark's notation."""
    rules = "\n".join(x for x in grammar.splitlines() if not x.startswith("//"))
    patterns = dict(_TERMINAL.findall(rules))
    quoted = dict.fromkeys(_QUOTED.findall(_TERMINAL.sub("", rules)))
    words = tuple(x for x in quoted if x.isalpha())
    signs = sorted((x for x in quoted if not x.isalpha()), key=len, reverse=True)
    return Tokens(words, tuple(signs), patterns)


TOKENS = read(GRAMMAR.read_text(encoding="utf-8"))
KEYWORDS = tuple(x for x in TOKENS.words if x not in SOFT)
"""The words that cannot be names."""
