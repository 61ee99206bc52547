"""The canonical form of an ``.attn`` text: one statement a line, two blanks of indentation, at most 128 columns.

It works on tokens, so comments, docstrings and parentheses survive and the tree cannot change: ``parse(format_text(x)) == parse(x)``,
and formatting twice changes nothing more. Ranks that share a line keep sharing it; single blank lines are kept.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from einfuse.dsl import ast
from einfuse.dsl.parse import parse
from einfuse.dsl.tokens import KEYWORDS, TOKENS

WIDTH = 128
NESTED = 8
"""How many brackets deep a line may be broken."""
_PATTERNS = TOKENS.patterns
_TOKEN = re.compile(
    f"(?P<doc>{_PATTERNS['DOCSTRING']})|(?P<comment>{_PATTERNS['COMMENT']})|(?P<number>{_PATTERNS['NUMBER']})"
    f"|(?P<name>{_PATTERNS['NAME']})|(?P<op>{'|'.join(map(re.escape, TOKENS.signs))})"
)
_BINARY = frozenset(("+", "-", "*", "/", "//", "%", "^", "<", "<=", ">", ">=", "==", "!=", "=", "->"))
_BREAKS = frozenset(("and", "or", "if", "else", "+", "-", "*", "/", "//", "%"))


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int
    column: int
    unary: bool = False
    own_line: bool = False  # of a comment: nothing stands before it in its line

    @property
    def last_line(self) -> int:
        return self.line + self.text.count("\n")


@dataclass(slots=True)
class _Line:
    """A logical line: one statement, header, brace, docstring or comment."""

    indent: int
    tokens: list[_Token] = field(default_factory=list)
    what: str = ""
    blank_before: bool = False


def format_text(text: str, file: str = "<text>") -> str:
    """The canonical form of ``text``. Raises SpecError where it is not ``.attn``."""
    module = parse(text, file)
    lines = _logical(_tokens(text), _starts(module))
    out: list[str] = []
    for n, line in enumerate(lines):
        if n and _blank(lines[n - 1], line):
            out.append("")
        out += _rendered(line)
    return "\n".join(out) + "\n" if out else ""


def _starts(module: ast.Module) -> dict[tuple[int, int], str]:
    """Where items, elements and statements start, and what they are."""
    starts: dict[tuple[int, int], str] = {}
    kinds = (
        ast.Use,
        ast.Attention,
        ast.Definition,
        ast.RankLine,
        ast.Input,
        ast.Output,
        ast.Statement,
        ast.Scan,
        ast.StateLine,
    )
    for node, _ in ast.walk(module):
        if isinstance(node, kinds):
            assert node.loc is not None, "parsed nodes have places"
            block = isinstance(node, ast.Definition) and node.block
            starts[node.loc.line, node.loc.column] = "Block" if block else type(node).__name__
    return starts


def _tokens(text: str) -> list[_Token]:
    out: list[_Token] = []
    line, start = 1, 0
    for m in _TOKEN.finditer(text):
        line += text.count("\n", start, m.start())
        start = m.start()
        column = m.start() - text.rfind("\n", 0, m.start())
        kind = m.lastgroup or ""
        body = m.group().rstrip() if kind == "comment" else m.group()
        before = out[-1] if out else None
        own = kind == "comment" and (before is None or before.last_line < line)
        previous = next((t for t in reversed(out) if t.kind != "comment"), None)
        unary = body == "-" and (
            previous is None or previous.text in _BINARY or previous.text in "([,{" or previous.text in KEYWORDS
        )
        out.append(_Token(kind, body, line, column, unary, own))
    return out


def _logical(tokens: list[_Token], starts: dict[tuple[int, int], str]) -> list[_Line]:
    """Tokens sorted into logical lines."""
    lines: list[_Line] = []
    depth, previous = 0, None
    fresh = True  # does the next token start a line?
    for n, t in enumerate(tokens):
        what = starts.get((t.line, t.column), "") if t.kind != "comment" else ""
        if t.text == ";":
            previous = t
            continue
        starting = fresh or what or t.kind == "doc" or t.text in ("return", "}") or (t.own_line and _between(tokens, n, starts))
        if t.text == "}":
            depth -= 1
        shared = (
            what == "RankLine" and lines and lines[-1].what == what and previous is not None and previous.last_line == t.line
        )
        if t.kind == "comment" and not t.own_line and lines:
            starting = False
        if shared and lines[-1].tokens[-1].kind != "comment":
            lines[-1].tokens.append(_Token("op", ";", t.line, t.column))
        elif starting:
            gap = previous is not None and t.line > previous.last_line + 1
            lines.append(
                _Line(depth, [], what or ("doc" if t.kind == "doc" else t.kind if t.kind == "comment" else t.text), gap)
            )
        lines[-1].tokens.append(t)
        if t.text == "{":
            depth += 1
        fresh = t.text in ("{", "}") or t.kind == "doc" or (t.kind == "comment" and (fresh or lines[-1].what == "comment"))
        previous = t
    return lines


def _between(tokens: list[_Token], n: int, starts: dict[tuple[int, int], str]) -> bool:
    """Does the comment at ``n`` stand between statements (and not in the middle of one)?"""
    after = next((t for t in tokens[n + 1 :] if t.kind != "comment" and t.text != ";"), None)
    return after is None or (after.line, after.column) in starts or after.kind == "doc" or after.text in ("return", "}")


def _blank(before: _Line, line: _Line) -> bool:
    """Is there a blank line between two logical lines?"""
    opening = next((t for t in reversed(before.tokens) if t.kind != "comment"), None)
    if line.what == "}" or (opening is not None and opening.text == "{"):
        return False
    if line.indent == 0 and before.what == "}":
        return True
    if line.indent == 0 and line.what in ("Attention", "Block", "doc") and before.what in ("Use", "Definition"):
        return True
    return line.blank_before


def _rendered(line: _Line) -> list[str]:
    """The text of a logical line, broken where a comment or its width makes it."""
    pad, deeper = "  " * line.indent, "  " * (line.indent + 2)
    out: list[str] = []
    part: list[_Token] = []
    for t in line.tokens:
        if t.kind != "comment":
            part.append(t)
            continue
        pieces = _wrapped(part, deeper if out else pad, deeper, line.what == "RankLine") if part else []
        if pieces and not t.own_line:
            pieces[-1] += f"  {t.text}"
        else:
            pieces.append((deeper if out or pieces else pad) + t.text)
        out, part = out + pieces, []
    return out + (_wrapped(part, deeper if out else pad, deeper, line.what == "RankLine") if part else [])


def _wrapped(tokens: list[_Token], pad: str, deeper: str, whole: bool) -> list[str]:
    """Tokens in as many lines as their width needs: a break before `where` first, then outside brackets, then ever deeper inside."""
    text = pad + _joined(tokens)
    if whole or len(text) <= WIDTH or tokens[0].kind == "doc":
        return [text]
    out: list[str] = []
    for part in _clauses(tokens):
        start = deeper if out else pad
        out += next(p for level in range(NESTED + 1) if (p := _packed(part, start, deeper, level)) is not None)
    return out


def _packed(tokens: list[_Token], pad: str, deeper: str, level: int) -> list[str] | None:
    """Lines filled up to the width, broken at most ``level`` brackets deep; None where that does not suffice."""
    out: list[str] = []
    current: list[_Token] = []
    for chunk in _chunks(tokens, level):
        start = deeper if out else pad
        if current and len(start + _joined(current + chunk)) > WIDTH:
            out.append(start + _joined(current))
            current = []
        current = current + chunk
    out.append((deeper if out else pad) + _joined(current))
    return out if level >= NESTED or all(len(x) <= WIDTH for x in out) else None


def _clauses(tokens: list[_Token]) -> list[list[_Token]]:
    """Split before the `where` of the statement itself."""
    depth = 0
    for n, t in enumerate(tokens):
        depth += (t.text in ("(", "[")) - (t.text in (")", "]"))
        if t.text == "where" and depth == 0 and n:
            return [tokens[:n], tokens[n:]]
    return [tokens]


def _chunks(tokens: list[_Token], level: int) -> list[list[_Token]]:
    """Tokens split before operators and after commas that stand in at most ``level`` brackets."""
    out: list[list[_Token]] = [[]]
    depth = 0
    for t in tokens:
        depth -= t.text in (")", "]")
        if out[-1] and depth <= level and ((t.text in _BREAKS and not t.unary) or out[-1][-1].text == ","):
            out.append([])
        out[-1].append(t)
        depth += t.text in ("(", "[")
    return out


def _joined(tokens: list[_Token]) -> str:
    out = ""
    for n, t in enumerate(tokens):
        out += (" " if n and _spaced(tokens[n - 1], t) else "") + t.text
    return out


def _spaced(a: _Token, b: _Token) -> bool:
    """Does a blank stand between two neighbours?"""
    if a.text in ("(", "[", ".") or b.text in (")", "]", ",", ":", ";", ".") or a.unary:
        return False
    if b.text in ("(", "["):
        return not ((a.kind == "name" and a.text not in KEYWORDS) or a.text in (")", "]"))
    return True
