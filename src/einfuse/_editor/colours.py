"""How the language is coloured: one list of rules, made of the grammar's tokens and the compiler's tables of names.

`einfuse._editor.lexer` reads it for Pygments; ``python -m einfuse._editor.colours FILE`` writes it as a TextMate grammar.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from einfuse.dsl.modules import HERE, REDUCERS, SPECIAL
from einfuse.dsl.tokens import SOFT, TOKENS
from einfuse.ir import FUNCTIONS, RANK_KINDS, read_spec

JOINS = ("and", "or", "not", "if", "else", "in", "where")
"""Words inside of expressions."""
TRUTHS = ("true", "false")
TYPES = ("float", "int", "bool", "enum")
BRACKETS = frozenset("{}()[],;:.")


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern that Python and Oniguruma read alike; ``kinds`` are those of its groups, or the one of the whole."""

    pattern: str
    kinds: tuple[str, ...]


SCOPES = {
    "": "",
    "docstring": "string.quoted.docstring",
    "comment": "comment.line.number-sign",
    "number": "constant.numeric",
    "truth": "constant.language",
    "keyword": "keyword.other",
    "join": "keyword.control",
    "type": "storage.type",
    "defined": "entity.name.function",
    "known": "support.function",
    "name": "variable.other",
    "operator": "keyword.operator",
    "bracket": "punctuation",
}
"""What TextMate calls a kind."""


def rules() -> list[Rule]:
    """The rules, in the order in which they are tried."""
    name = TOKENS.patterns["NAME"]
    plain = [x for x in TOKENS.words if x not in (*JOINS, *TRUTHS, *SOFT)]
    return [
        Rule(TOKENS.patterns["DOCSTRING"], ("docstring",)),
        Rule(TOKENS.patterns["COMMENT"], ("comment",)),
        Rule(rf"\b(attention|def)(\s+)({name})", ("keyword", "", "defined")),
        Rule(rf"(:)(\s*)({_any((*RANK_KINDS, *TYPES))})\b", ("bracket", "", "type")),
        Rule(rf"\b(?:{_any(plain)})\b", ("keyword",)),
        Rule(rf"\b(?:{_any(SOFT)})\b(?=\s+[A-Za-z_0-9(])", ("keyword",)),
        Rule(rf"\b(?:{_any(JOINS)})\b", ("join",)),
        Rule(rf"\b(?:{_any(TRUTHS)})\b", ("truth",)),
        Rule(rf"\b(?:{_any(known())})\b(?=\s*[\[(])", ("known",)),
        Rule(name, ("name",)),
        Rule(TOKENS.patterns["NUMBER"], ("number",)),
        Rule(_any(re.escape(x) for x in TOKENS.signs if x not in BRACKETS), ("operator",)),
        Rule(_any(re.escape(x) for x in TOKENS.signs if x in BRACKETS), ("bracket",)),
    ]


def known() -> list[str]:
    """The functions, reducers and normalisers that every text can call."""
    defined = re.findall(r"^def (\w+)", read_spec(HERE / "prelude.attn"), re.MULTILINE)
    return sorted({x for x in (*FUNCTIONS, *REDUCERS, *SPECIAL, *defined) if x.isidentifier()} - set(TOKENS.words))


def textmate() -> str:
    """The rules as a TextMate grammar, which goes line by line."""
    patterns = [_block() if r.kinds == ("docstring",) else _pattern(r) for r in rules()]
    grammar = {"name": "attn", "scopeName": "source.attn", "fileTypes": ["attn"], "patterns": patterns}
    return json.dumps(grammar, indent=2) + "\n"


def _pattern(rule: Rule) -> dict[str, object]:
    if len(rule.kinds) == 1:
        return {"match": rule.pattern, "name": _scope(rule.kinds[0])}
    named = {str(n): {"name": _scope(kind)} for n, kind in enumerate(rule.kinds, 1) if kind}
    return {"match": rule.pattern, "captures": named}


def _block() -> dict[str, object]:
    return {"begin": '"""', "end": '"""', "name": _scope("docstring")}


def _scope(kind: str) -> str:
    return f"{SCOPES[kind]}.attn"


def _any(words: Iterable[str]) -> str:
    return "|".join(words)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(textmate(), encoding="utf-8")
