"""Colours: the words of the grammar, the generated files, and every text of the library without an error."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pygments.lexers import get_lexer_for_filename
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, Punctuation, String, Whitespace

from einfuse import dsl
from einfuse._editor.colours import rules, textmate
from einfuse._editor.lexer import AttnLexer
from einfuse.dsl.syntax import grammar
from einfuse.dsl.tokens import SOFT, TOKENS, read

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "editor" / "vscode" / "syntaxes" / "attn.tmLanguage.json"
SPECS = sorted((ROOT / "library" / "specs").rglob("*.attn"))


def test_the_textmate_grammar_is_that_of_the_language() -> None:
    assert GENERATED.read_text(encoding="utf-8") == textmate(), "run `make colours`"


def test_a_grammar_is_read() -> None:
    found = read('// "no" word\na: "rank" NAME "," -> b\nOPTIONAL: "optional"\nNAME: /[a-z]"x"+/\n')
    assert (found.words, found.signs, found.patterns) == (("rank", "optional"), (",",), {"NAME": '[a-z]"x"+'})


def test_the_tokens_are_those_of_the_parser() -> None:
    """Every terminal that lark knows is a word, a sign or a pattern."""
    text = [*TOKENS.words, *TOKENS.signs, *(x.replace(r"\n", "\n") for x in TOKENS.patterns.values())]
    text += [x.replace(r"\t", "\t").replace(r"\r", "\r") for x in text]
    for terminal in grammar().terminals:
        value = terminal.pattern.value
        options = [re.sub(r"\\(.)", r"\1", x) for x in re.sub(r"^\(\?:(.*)\)$", r"\1", value).split("|")]
        assert value in text or set(options) <= set(text), terminal


@pytest.mark.parametrize("path", SPECS[::7], ids=lambda p: p.stem)
def test_colours_agree_with_the_parser(path: Path) -> None:
    """Words are coloured as words exactly where the parser reads words, and so are names, numbers and signs."""
    text = dsl.read_spec(path)
    at, kinds = 0, {}
    for kind, value in AttnLexer(stripnl=False, ensurenl=False).get_tokens(text):
        kinds[at] = kind
        at += len(value)
    assert at == len(text)
    for t in grammar().parse(text).scan_values(lambda t: t is not None):
        if t.type in ("NAME", "NUMBER", "DOCSTRING"):
            wanted = {"NAME": (Name, Keyword.Type), "NUMBER": (Number,), "DOCSTRING": (String.Doc,)}[t.type]
        else:
            wanted = (Keyword, Operator, Punctuation)
        assert t.start_pos is not None
        assert any(kinds[t.start_pos] in w for w in wanted), (t, kinds[t.start_pos])


def test_every_text_of_the_library_is_lexed_without_an_error() -> None:
    lexer = get_lexer_for_filename("a.attn") if _installed() else AttnLexer()
    for path in (*SPECS, ROOT / "dsl" / "prelude.attn", ROOT / "dsl" / "masks.attn"):
        found = list(lexer.get_tokens(dsl.read_spec(path)))
        assert Error not in {kind for kind, _ in found}, path
        words = {value for kind, value in found if kind in Keyword or kind in Operator.Word}
        assert words <= {*TOKENS.words, "query", "key", "feature", "batch", "head", "state", "float", "int", "bool", "enum"}


def _installed() -> bool:
    from importlib.metadata import entry_points

    return any(x.value == "einfuse._editor.lexer:AttnLexer" for x in entry_points(group="pygments.lexers"))


def test_what_is_no_text_of_the_language_is_an_error() -> None:
    kinds = [kind for kind, _ in AttnLexer().get_tokens("o = a ? b # rest\n") if kind not in Whitespace]
    assert kinds == [Name, Operator, Name, Error, Name, Comment.Single]


def test_soft_words_are_names_elsewhere() -> None:
    text = "state S = state * 2 from state"
    assert [k for k, v in AttnLexer().get_tokens(text) if v in SOFT] == [Keyword, Name, Keyword, Name]


def test_patterns_have_a_kind_for_every_group() -> None:
    for rule in rules():
        groups = re.compile(rule.pattern).groups
        assert len(rule.kinds) == max(1, groups) or len(rule.kinds) == 1, rule
    assert json.loads(textmate())["scopeName"] == "source.attn"
