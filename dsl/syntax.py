"""The grammar and what it builds: text to syntax tree. Slow to import; `dsl.parse` is the way in."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import io
import math
import sys
from pathlib import Path
from typing import Any

import lark
from lark import Lark, Token, v_args
from lark.exceptions import UnexpectedInput, VisitError
from lark.tree import Meta
from lark.visitors import Transformer_NonRecursive

from einfuse._files import opened, sealed, write_atomic
from einfuse.dsl import ast
from einfuse.dsl.diagnostics import syntax_error
from einfuse.dsl.tokens import GRAMMAR, KEYWORDS
from einfuse.ir import MAX_TEXT, Span, SpecError

MAX_NESTING = 200


def parsed(text: str, file: str) -> ast.Module:
    """The syntax tree; the SpecError of a fault knows its place, and not yet the text."""
    if len(text) > MAX_TEXT:
        raise SpecError(f"the text has {len(text):,} characters; a spec has at most {MAX_TEXT:,}", Span(file, 1, 1))
    try:
        items: list[Any] = _Build(file).transform(grammar().parse(text))
    except UnexpectedInput as error:
        raise syntax_error(error, text, file) from None
    except VisitError as error:
        if isinstance(error.orig_exc, SpecError):
            raise error.orig_exc from None
        raise
    module = _module(items, file, text)
    for node, depth in ast.walk(module):
        if depth > MAX_NESTING:
            raise SpecError(
                f"this is nested more than {MAX_NESTING} levels deep",
                node.loc if not isinstance(node, ast.Module) else None,
                "give a part of the expression a name of its own",
            )
    return module


@functools.cache
def grammar() -> Lark:
    """The parser; its trees are turned into `dsl.ast` nodes by `_Build`.

    Its tables take ten times as long to make as to read, so they are kept beside the grammar where Python keeps its own byte code, under a
    name that changes with the grammar, with lark and with Python.
    """
    text = GRAMMAR.read_text(encoding="utf-8")
    version = f"{sys.implementation.cache_tag} {lark.__version__}"
    name = hashlib.sha256(f"{version} {text}".encode()).hexdigest()[:16]
    return _tables(text, GRAMMAR.parent / "__pycache__" / f"attn.{name}.tables")


def _tables(text: str, kept: Path) -> Lark:
    """The parser of a grammar, from its tables where they are whole; else they are made, and kept in a folder that may be written to."""
    with contextlib.suppress(OSError):
        body = opened(kept, kept.read_bytes())
        if body is not None:
            return Lark.load(io.BytesIO(body))
    made = Lark(text, parser="lalr", propagate_positions=True, maybe_placeholders=True)
    if not sys.dont_write_bytecode:
        tables = io.BytesIO()
        made.save(tables)
        with contextlib.suppress(OSError):
            kept.parent.mkdir(exist_ok=True)  # as Python makes it, for all who may read the grammar
            write_atomic(kept, sealed(kept, tables.getvalue()))
    return made


def _module(items: list[Any], file: str, text: str) -> ast.Module:
    """Sorts the items of a file. As in Python, a docstring that opens the file is the file's; any other is of what follows it."""
    doc, pending = "", None
    uses: list[ast.Use] = []
    definitions: list[ast.Definition] = []
    attentions: list[ast.Attention] = []
    for n, item in enumerate(items):
        if n == 0 and isinstance(item, _Doc):
            doc = item.text
        elif isinstance(item, _Doc | ast.Use):
            if pending is not None:
                raise _stray(pending)
            if isinstance(item, _Doc):
                pending = item
            else:
                uses.append(item)
        else:
            assert isinstance(item, ast.Definition | ast.Attention), f"the grammar has no item {type(item).__name__}"
            if pending is not None:
                item, pending = dataclasses.replace(item, doc=pending.text), None
            (definitions if isinstance(item, ast.Definition) else attentions).append(item)  # type: ignore[arg-type]
    if pending is not None:
        raise _stray(pending)
    return ast.Module(doc, tuple(uses), tuple(definitions), tuple(attentions), file, text)


class _Doc:
    def __init__(self, text: str, loc: Span) -> None:
        self.text, self.loc = text, loc


def _stray(doc: _Doc) -> SpecError:
    return SpecError(
        "a docstring stands first in the file or right before an `attention` or a `def`", doc.loc, "write a comment with # here"
    )


def _span(file: str, meta: Meta | Token) -> Span:
    """The place of a token or of the tokens of a rule."""
    start, end, line, column = meta.start_pos, meta.end_pos, meta.line, meta.column
    known = start is not None and end is not None and line is not None and column is not None
    assert known, "positions are on"
    return Span(file, line, column, max(1, end - start))  # type: ignore[operator,arg-type]  # known


def _number(token: Token, loc: Span) -> ast.Number:
    text = str(token)
    if len(text) > 40:
        raise SpecError("this number has more than 40 characters", loc)
    if text.isdigit():
        value: int | float = int(text)
        if value >= 2**63:
            raise SpecError(f"{text} does not fit in 64 bits", loc)
        return ast.Number(value, "int", loc)
    value = float(text)
    if math.isinf(value):
        raise SpecError(f"{text} is too large for a float", loc)
    return ast.Number(value, "float", loc)


@v_args(meta=True)
class _Build(Transformer_NonRecursive[Token, Any]):
    """Lark's callbacks, bottom up and without recursion. Optional parts that are absent arrive as None."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def start(self, _: Meta, c: list[Any]) -> list[Any]:
        return c

    def docstring(self, m: Meta, c: list[Token]) -> _Doc:
        return _Doc(inspect.cleandoc(c[0][3:-3]), _span(self.file, m))

    def use(self, m: Meta, c: list[Any]) -> ast.Use:
        module, name = (None if t is None else ast.Name(str(t), _span(self.file, t)) for t in c)
        assert module is not None, "the grammar asks for a module"
        return ast.Use(module, name, _span(self.file, m))

    def name(self, m: Meta, c: list[Token]) -> ast.Name:
        for t in c:
            if t in KEYWORDS:  # the lexer takes one as a name where no keyword can stand
                raise SpecError(f"`{t}` is a word of the language and cannot be a name", _span(self.file, t))
        return ast.Name(".".join(c), _span(self.file, m))

    path = name

    def names(self, _: Meta, c: list[Any]) -> tuple[Any, ...]:
        return tuple(x for x in c if x is not None)

    members = params = exprs = arguments = names

    def param(self, m: Meta, c: list[Any]) -> ast.Param:
        name, kind, members, default = c
        return ast.Param(name, kind, members[0] if members else (), default, _span(self.file, m))

    def attention(self, m: Meta, c: list[Any]) -> ast.Attention:
        name, params, over, *body = c
        elements = tuple(x for x in body if x is not None)
        return ast.Attention(name, params or (), over or (), elements, loc=_span(self.file, m))

    def rank(self, m: Meta, c: list[Any]) -> ast.RankLine:
        return ast.RankLine(c[0], c[1], c[2], _span(self.file, m))

    def input(self, m: Meta, c: list[Any]) -> ast.Input:
        return ast.Input(c[0], c[1] or (), c[2], c[3] is not None, _span(self.file, m))

    def output(self, m: Meta, c: list[Any]) -> ast.Output:
        return ast.Output(c[0], _span(self.file, m))

    def statement(self, m: Meta, c: list[Any]) -> ast.Statement:
        return ast.Statement(c[0], c[1], c[2], c[3], _span(self.file, m))

    def scan(self, m: Meta, c: list[Any]) -> ast.Scan:
        return ast.Scan(c[0], tuple(c[1:]), _span(self.file, m))

    def state(self, m: Meta, c: list[Any]) -> ast.StateLine:
        return ast.StateLine(c[0], c[1] or (), c[2], c[3], _span(self.file, m))

    def short_definition(self, m: Meta, c: list[Any]) -> ast.Definition:
        return ast.Definition(c[0], c[1] or (), c[2] or (), (), c[3], loc=_span(self.file, m))

    def long_definition(self, m: Meta, c: list[Any]) -> ast.Definition:
        name, ranks, params, *body, result = c
        return ast.Definition(name, ranks or (), params or (), tuple(body), result, block=True, loc=_span(self.file, m))

    def conditional(self, m: Meta, c: list[Any]) -> ast.Conditional:
        return ast.Conditional(c[0], c[1], c[2], _span(self.file, m))

    def binary(self, m: Meta, c: list[Any]) -> ast.Binary:
        return ast.Binary(str(c[1]), c[0], c[2], _span(self.file, m))

    def unary(self, m: Meta, c: list[Any]) -> ast.Unary:
        return ast.Unary("not", c[1], _span(self.file, m))

    def negative(self, m: Meta, c: list[Any]) -> ast.Unary:
        return ast.Unary("neg", c[-1], _span(self.file, m))

    def compare(self, m: Meta, c: list[Any]) -> ast.Compare:
        return ast.Compare(tuple(str(t) for t in c[1::2]), tuple(c[0::2]), _span(self.file, m))

    def member(self, m: Meta, c: list[Any]) -> ast.Member:
        return ast.Member(c[0], c[1], _span(self.file, m))

    def number(self, _: Meta, c: list[Token]) -> ast.Number:
        return _number(c[0], _span(self.file, c[0]))

    def truth(self, m: Meta, c: list[Token]) -> ast.Truth:
        return ast.Truth(str(c[0]) == "true", _span(self.file, m))

    def group(self, _: Meta, c: list[Any]) -> Any:
        return c[0]

    def read(self, m: Meta, c: list[Any]) -> ast.Read:
        return ast.Read(c[0], c[1] or (), _span(self.file, m))

    def masked(self, _: Meta, c: list[Any]) -> _Masked:
        return _Masked(c[0], c[1])

    def binding(self, _: Meta, c: list[Any]) -> _Binding:
        return _Binding(c[0], c[1])

    def repeated(self, _: Meta, c: list[Any]) -> _Repeated:
        bound = [x for x in c[1:] if isinstance(x, _Binding)]
        return _Repeated(c[0], bound, [x for x in c[1:] if not isinstance(x, _Binding)])

    def call(self, m: Meta, c: list[Any]) -> ast.Call | ast.Repeat:
        return _call(c[0], None, c[1], _span(self.file, m))

    def indexed_call(self, m: Meta, c: list[Any]) -> ast.Call | ast.Repeat:
        return _call(c[0], c[1], c[2], _span(self.file, m))

    def populate(self, m: Meta, c: list[Any]) -> ast.Call:
        found = _call(c[0], c[1], c[3], _span(self.file, m))
        if not isinstance(found, ast.Call):
            raise SpecError("`repeat` makes no slots", c[2].loc, "only topk[w -> n](x) does")
        return dataclasses.replace(found, slot=c[2])


class _Masked:
    """``value where condition`` between the parentheses of a reduction."""

    def __init__(self, value: ast.Expr, where: ast.Expr) -> None:
        self.value, self.where = value, where


class _Binding:
    """``name = value`` between the parentheses of a `repeat`."""

    def __init__(self, name: ast.Name, value: ast.Expr) -> None:
        self.name, self.value = name, value


class _Repeated:
    """``count, name = start, ..., next, ...`` between the parentheses of a `repeat`."""

    def __init__(self, count: ast.Expr, bound: list[_Binding], steps: list[ast.Expr]) -> None:
        self.count, self.bound, self.steps = count, bound, steps


def _repeat(name: ast.Name, ranks: tuple[ast.Expr, ...] | None, r: _Repeated, loc: Span) -> ast.Repeat:
    if name.text != "repeat" or ranks is not None:
        raise SpecError(f"`{name}` takes no `name = value`", r.bound[0].name.loc, "only repeat(n, t = start, next) has one")
    if len(r.steps) != len(r.bound):
        found = f"{len(r.bound)} start{'s' * (len(r.bound) > 1)} and {len(r.steps)} next value{'s' * (len(r.steps) > 1)}"
        raise SpecError(f"`repeat` takes one next value for every name, found {found}", loc, "write repeat(n, t = start, next)")
    return ast.Repeat(r.count, tuple(b.name for b in r.bound), tuple(b.value for b in r.bound), tuple(r.steps), loc)


def _call(name: ast.Name, ranks: tuple[ast.Expr, ...] | None, args: Any, loc: Span) -> ast.Call | ast.Repeat:
    if isinstance(args, _Repeated):
        return _repeat(name, ranks, args, loc)
    if isinstance(args, _Masked):
        return ast.Call(name, ranks, (args.value,), args.where, loc)
    return ast.Call(name, ranks, args or (), None, loc)
