"""What a syntax error says: the place, what was expected in words, the nearest known word, and a next step."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from einfuse.dsl.tokens import KEYWORDS
from einfuse.ir import Span, SpecError

if TYPE_CHECKING:  # the parser's library is slow to import, and a spec that was parsed before does without
    from lark import Token
    from lark.exceptions import UnexpectedInput, UnexpectedToken

_WORDS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "DOCSTRING": "a docstring",
    "LPAR": "`(`",
    "RPAR": "`)`",
    "LSQB": "`[`",
    "RSQB": "`]`",
    "LBRACE": "`{`",
    "RBRACE": "`}`",
    "COMMA": "`,`",
    "COLON": "`:`",
    "DOT": "`.`",
    "EQUAL": "`=`",
    "MINUS": "`-`",
    "COMPARISON": "a comparison",
    "ADDITIVE": "`+`",
    "MULTIPLICATIVE": "`*`",
    "POWER": "`^`",
    "$END": "the end of the text",
}
_EXPRESSION = {"NAME", "NUMBER", "LPAR", "TRUE", "FALSE"}
_CONTINUES = {
    "ADDITIVE",
    "MULTIPLICATIVE",
    "POWER",
    "COMPARISON",
    "AND",
    "OR",
    "IF",
    "DOT",
    "LPAR",
    "LSQB",
    "MINUS",
    "SEMICOLON",
}
_FOREIGN = {
    "&": "conditions are joined by `and`, `or`, `not`",
    "|": "conditions are joined by `and`, `or`, `not`",
    "!": "negation is written `not`",
    "~": "negation is written `not`",
    "@": "a matrix product is written sum[d](a * b)",
    "'": 'the only strings are docstrings: """..."""',
    '"': 'the only strings are docstrings: """..."""',
    "\\": "a statement may simply go on in the next line",
    "?": "a choice is written a if condition else b",
}

_BARE_OPERAND = re.compile(r"\b(sum|max|min|prod|mean|any|count)\s*\[[^\]\n]*\]\s*\w+\s*$")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint that names the known word closest to ``name``, or nothing."""
    near = difflib.get_close_matches(name, [k for k in known if k != name], 1, 0.6)
    return f"did you mean `{near[0]}`?" if near else ""


def syntax_error(error: UnexpectedInput, text: str, file: str) -> SpecError:
    """A parser's refusal in our words."""
    from lark.exceptions import UnexpectedCharacters, UnexpectedToken

    if isinstance(error, UnexpectedCharacters):
        found = text[error.pos_in_stream or 0]
        where = Span(file, error.line, error.column)
        return SpecError(f"the character {found!r} has no meaning here", where, _FOREIGN.get(found, ""))
    assert isinstance(error, UnexpectedToken), "the lexer and the LALR parser have no other refusals"
    token, before = error.token, _before(error)
    if token.type == "$END":
        lines = text.splitlines() or [""]
        where = Span(file, len(lines), len(lines[-1]) + 1)
        return SpecError(f"the text ends too early: {_expected(error)}", where, _unclosed(text))
    where = Span(file, token.line or 1, token.column or 1, max(1, len(token)))
    typo = _typo(token, before, file)
    if typo is not None:
        return typo
    shown = f"`{token}`" if len(token) <= 30 else "this"
    return SpecError(f"unexpected {shown}: {_expected(error)}", where, _hint(token, before, text))


def _before(error: UnexpectedToken) -> Token | None:
    """The last token the parser took before the one it refused."""
    from lark import Token

    stack = error.interactive_parser.parser_state.value_stack if error.interactive_parser is not None else []
    last = stack[-1] if stack else None
    while last is not None and not isinstance(last, Token):
        last = last.children[-1] if last.children else None
    return last


def _typo(token: Token, before: Token | None, file: str) -> SpecError | None:
    """A misspelt keyword: it was read as a name, and what follows it does not fit (or it does not fit itself)."""
    for t, follows in ((before, token), (token, None)):
        if t is None or t.type != "NAME" or (follows is not None and follows.type not in ("NAME", "LBRACE")):
            continue
        near = difflib.get_close_matches(t, KEYWORDS, 1, 0.7)
        if near and t not in KEYWORDS:
            where = Span(file, t.line or 1, t.column or 1, max(1, len(t)))
            return SpecError(f"`{t}` is not a word of the language here", where, f"did you mean `{near[0]}`?")
    return None


def _expected(error: UnexpectedToken) -> str:
    accepts = set(error.accepts or error.expected)
    if accepts >= _EXPRESSION:
        return "expected a value"
    more = accepts - _CONTINUES
    if accepts & {"ADDITIVE", "MULTIPLICATIVE"}:  # a complete expression stands before it
        words = [w for w in map(_word, sorted(more)) if w]
        closers = [w for w in words if w in ("`)`", "`]`", "`,`", "`else`", "`(`")]
        return f"expected an operator or {_either(closers)}" if closers else "expected an operator, or the next statement"
    if "ATTENTION" in accepts:
        return "expected `attention`, `def`, `use` or a docstring"
    if "RANK" in accepts:
        return "expected `rank`, `in`, `out`, a statement or `}`"
    if "STATE" in accepts:
        return "expected `state`, a statement or `}`"
    words = [w for w in map(_word, sorted(accepts - {"SEMICOLON"})) if w]
    return f"expected {_either(words)}"


def _word(terminal: str) -> str:
    return _WORDS.get(terminal) or f"`{terminal.lower()}`"


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _hint(token: Token, before: Token | None, text: str) -> str:
    if token == "=" and (before is None or before.type != "NAME" or before == "where"):
        return "equality is written `==`"
    if token == "=":
        return "equality is written `==`; a statement is `name[ranks] = value`"
    if token == "*" and before == "*":
        return "a power is written x ^ y"
    if token == "where":
        return "a condition stands after the whole value of a statement, or last inside a reducer: sum[j](x where j < 4)"
    if _BARE_OPERAND.search(text[: token.start_pos]):
        return "the operand of a reducer stands in parentheses: max[j](s)"
    if str(token) in KEYWORDS:
        return f"`{token}` is a word of the language and cannot be a name"
    return ""


def _unclosed(text: str) -> str:
    """Which bracket is still open."""
    open_: list[tuple[str, int]] = []
    for n, line in enumerate(text.splitlines(), 1):
        for ch in line.split("#", 1)[0]:
            if ch in "([{":
                open_.append((ch, n))
            elif ch in ")]}" and open_:
                open_.pop()
    return f"the `{open_[-1][0]}` in line {open_[-1][1]} is never closed" if open_ else ""
