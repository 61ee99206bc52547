"""The language for Pygments: found by the name `attn` and by files `*.attn` wherever einfuse is installed."""

from __future__ import annotations

from typing import Any, ClassVar

from pygments.lexer import RegexLexer, bygroups
from pygments.token import Comment, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from einfuse._editor.colours import Rule, rules
from einfuse.dsl.tokens import TOKENS

KINDS = {
    "": Whitespace,
    "docstring": String.Doc,
    "comment": Comment.Single,
    "number": Number,
    "truth": Keyword.Constant,
    "keyword": Keyword,
    "join": Operator.Word,
    "type": Keyword.Type,
    "defined": Name.Function,
    "known": Name.Builtin,
    "name": Name,
    "operator": Operator,
    "bracket": Punctuation,
}


def _entry(rule: Rule) -> tuple[str, Any]:
    kinds = [KINDS[k] for k in rule.kinds]
    return rule.pattern, kinds[0] if len(kinds) == 1 else bygroups(*kinds)


class AttnLexer(RegexLexer):  # type: ignore[misc]  # Pygments has no types
    """Tokens of a text; what the grammar does not know is an error token."""

    name = "attn"
    aliases: ClassVar = ["attn"]
    filenames: ClassVar = ["*.attn"]
    url = "https://pypi.org/project/einfuse"
    tokens: ClassVar = {"root": [(TOKENS.patterns["WHITESPACE"], Whitespace), *map(_entry, rules())]}
