"""The text form of a cascade: `show` prints it, `parse` reads it back; ``parse(show(c)) == c``.

The notation is the ``.attn`` language without its comfort: every read spells its indices, every reduction is a statement of its
own, and folds, states and carries can be written down. ``X'[i]`` is the re-based value of a state, ``w[]`` a host number.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, assert_never

from einfuse.ir import expr as ex
from einfuse.ir.errors import SpecError
from einfuse.ir.nodes import Cascade, Einsum, Expr, Fold, Place, Range, Rank, State, Tensor, class_of
from einfuse.ir.reducers import REDUCERS
from einfuse.ir.span import Span

if TYPE_CHECKING:
    from lark import Lark, Token

_PRECEDENCE = {"or": 1, "and": 2, "not": 3} | dict.fromkeys(("<", "<=", ">", ">=", "==", "!=", "in"), 4)
_PRECEDENCE |= {"+": 5, "-": 5, "*": 6, "/": 6, "//": 6, "%": 6, "neg": 7, "^": 8}
_ATOM = 9


def show_expr(e: Expr, above: int = 0) -> str:
    """One expression; parentheses only where the tree needs them."""
    if e.op == "const":
        return str(e.value).lower() if isinstance(e.value, bool) else _number(e, above)
    if e.op in ("index", "size"):
        return e.name
    level = _PRECEDENCE.get(e.op)
    if level is None:
        args = ", ".join(show_expr(a) for a in e.args)
        return f"{e.name}{chr(39) if e.op == 'new' else ''}[{args}]" if e.op in ("load", "new") else f"{e.op}({args})"
    if e.op == "in":
        text = f"{show_expr(e.args[0], level + 1)} in {e.name}[{', '.join(map(show_expr, e.args[1:]))}]"
    elif e.op == "not":
        text = f"not {show_expr(e.args[0], level)}"
    elif e.op == "neg":
        text = f"-{show_expr(e.args[0], level)}"
    else:
        left, right = (level + 1, level) if e.op == "^" else (level + (level == 4), level + 1)
        text = f"{show_expr(e.args[0], left)} {e.op} {show_expr(e.args[1], right)}"
    return f"({text})" if level < above else text


def _number(e: Expr, above: int) -> str:
    text = repr(e.value).replace("inf", "1e999")  # reads back as inf, and takes no name from ranks and sizes
    return f"({text})" if text.startswith("-") else text


def _statement(x: Einsum | State | Fold, pad: str) -> list[str]:
    match x:
        case Fold():
            return _fold(x, pad)
        case State():
            carry = f" carry {show_expr(x.carry)}" if x.carry is not None else ""
            carry += f" from {show_expr(x.init)}" if x.init is not None else ""
            return [f"{pad}state {_target(x)} = {x.red} {show_expr(x.map)}{carry}"]
        case Einsum():
            red = f"{x.red}[{', '.join(x.over)}] " if x.red else ""
            return [f"{pad}{_target(x)} = {red}{show_expr(x.map)}{_where(x.mask)}"]
    assert_never(x)


def _target(x: Einsum | State) -> str:
    return f"{x.target}[{', '.join(x.ranks)}]"


def _where(mask: Expr | None) -> str:
    return f" where {show_expr(mask)}" if mask is not None else ""


def _fold(x: Fold, pad: str) -> list[str]:
    head = f"{pad}fold {x.rank}" + (f" with {', '.join(x.aligned)}" if x.aligned else "")
    head += f" count {x.count}" if x.count else ""
    head += f" step {x.step}" if x.step else ""
    head += " reverse" if x.reverse else ""
    for r in x.ranges:
        lo, hi, full_lo, full_hi = map(show_expr, (r.lo, r.hi, r.full_lo, r.full_hi))
        head += f"\n{pad}  range ({lo}, {hi}) full ({full_lo}, {full_hi})"
    head += " tabulated" if x.tabulated else ""
    head += f" split {x.split}" if x.split > 1 else ""
    head += _where(x.mask)
    return [head + " {"] + [line for y in x.body for line in _statement(y, pad + "  ")] + [pad + "}"]


def show_body(c: Cascade) -> str:
    """The statements alone, as they are shown to people."""
    return "\n".join(line for x in c.body for line in _statement(x, "  "))


def show(c: Cascade) -> str:
    """The whole cascade as text."""
    out = [f"cascade {c.name}" + (f" over {', '.join(c.over)}" if c.over else "") + " {"]
    out += [f"  rank {r.name}: {r.kind} = {r.size}{f' = {show_expr(r.extent)}' if r.extent else ''}" for r in c.ranks]
    for t in c.inputs:
        axes = "" if t.param else f"[{', '.join(map(show_expr, t.axes))}]"
        default = "" if t.default is None else f" = {show_expr(ex.const(t.default))}"
        listed = "" if t.listed is None else f" listed {show_expr(t.listed)}"
        out.append(f"  {'param' if t.param else 'in'} {t.name}{axes}: {t.dtype}{default}{listed}{' made' * t.made}")
    out += [f"  tile {rank} {block}" for rank, block in c.tile]
    return "\n".join([*out, show_body(c), f"  out {', '.join(_out(c, n) for n in c.outs)}", "}"])


def _out(c: Cascade, name: str) -> str:
    place = c.place(name)
    if place is None:
        return name
    axes, index = (", ".join(map(show_expr, x)) for x in (place.axes, place.index))
    return f"{name}[{axes}] at [{index}]"


GRAMMAR = r"""
start: "cascade" NAME ["over" names] "{" item* "}"
?item: rank | input | param | tile | fold | einsum | out
rank: "rank" NAME ":" NAME "=" (NAME | INT) ["=" sum_]
input: "in" NAME "[" [exprs] "]" ":" NAME ["listed" sum_] [MADE]
param: "param" NAME ":" NAME ["=" sum_]
tile: "tile" NAME INT
out: "out" placed ("," placed)*
placed: NAME ["[" [exprs] "]" "at" "[" [exprs] "]"]
einsum: NAME "[" [names] "]" "=" [RED "[" names "]"] expr [where]
state: "state" NAME "[" [names] "]" "=" (RED | SET) expr ["carry" expr] ["from" expr]
fold: "fold" NAME [with_] [count] [step] [REVERSE] range* [TABULATED] [split] [where] "{" (einsum | state)* "}"
count: "count" NAME
with_: "with" names
step: "step" INT
range: "range" "(" expr "," expr ")" "full" "(" expr "," expr ")"
split: "split" INT
where: "where" expr
names: NAME ("," NAME)*
exprs: expr ("," expr)*
?expr: or_
?or_: and_ ("or" and_)* -> left
?and_: not_ ("and" not_)* -> left_and
?not_: "not" not_ -> not_ | cmp
?cmp: sum_ [CMP sum_] | sum_ "in" NAME "[" [exprs] "]" -> member
?sum_: term (ADD term)*
?term: unary (MUL unary)*
?unary: "-" unary -> neg | power
?power: atom ["^" unary]
?atom: FLOAT -> float_ | INT -> int_ | "true" -> true | "false" -> false
    | NAME "(" exprs ")" -> call | NAME "[" [exprs] "]" -> load | NAME "'" "[" [exprs] "]" -> new
    | NAME -> name | "(" expr ")"
RED.2: /(REDUCERS)(?=[ \[])/
SET.2: /set(?= )/
MADE: "made"
TABULATED: "tabulated"
REVERSE: "reverse"
CMP: "<=" | ">=" | "==" | "!=" | "<" | ">"
ADD: "+" | "-"
MUL: "*" | "//" | "/" | "%"
NAME: /[A-Za-z_][A-Za-z_0-9.]*/
INT: /[0-9]+/
FLOAT.1: /([0-9]+\.[0-9]*(e[+-]?[0-9]+)?)|([0-9]+e[+-]?[0-9]+)/
COMMENT: /#[^\n]*/
%import common.WS
%ignore WS
%ignore COMMENT
"""


class _Build:
    """Lark's callbacks, bottom up; a bare name becomes a size until `_resolve` knows the ranks."""

    def names(self, c: list[Token]) -> tuple[str, ...]:
        return tuple(map(str, c))

    def exprs(self, c: list[Expr]) -> tuple[Expr, ...]:
        return tuple(c)

    def float_(self, c: list[Token]) -> Expr:
        return ex.const(float(c[0]))

    def int_(self, c: list[Token]) -> Expr:
        return ex.const(int(c[0]))

    def true(self, _: list[Token]) -> Expr:
        return ex.TRUE

    def false(self, _: list[Token]) -> Expr:
        return ex.FALSE

    def name(self, c: list[Token]) -> Expr:
        return ex.size(str(c[0]))

    def call(self, c: list) -> Expr:  # type: ignore[type-arg]
        return Expr(str(c[0]), c[1])

    def load(self, c: list) -> Expr:  # type: ignore[type-arg]
        return Expr("load", c[1] or (), str(c[0]))

    def new(self, c: list) -> Expr:  # type: ignore[type-arg]
        return Expr("new", c[1] or (), str(c[0]))

    def neg(self, c: list[Expr]) -> Expr:
        value = c[0].value
        if c[0].op == "const" and isinstance(value, int | float) and not isinstance(value, bool):
            return ex.const(-value)
        return Expr("neg", (c[0],))

    def not_(self, c: list[Expr]) -> Expr:
        return Expr("not", (c[0],))

    def left(self, c: list[Expr]) -> Expr:
        return functools.reduce(lambda a, b: Expr("or", (a, b)), c)

    def left_and(self, c: list[Expr]) -> Expr:
        return functools.reduce(lambda a, b: Expr("and", (a, b)), c)

    def sum_(self, c: list) -> Expr:  # type: ignore[type-arg]
        out: Expr = c[0]
        for op, x in zip(c[1::2], c[2::2], strict=True):
            out = Expr(str(op), (out, x))
        return out

    term = sum_

    def cmp(self, c: list) -> Expr:  # type: ignore[type-arg]
        return Expr(str(c[1]), (c[0], c[2])) if c[1] is not None else c[0]

    def member(self, c: list) -> Expr:  # type: ignore[type-arg]
        return Expr("in", (c[0], *(c[2] or ())), str(c[1]))

    def power(self, c: list) -> Expr:  # type: ignore[type-arg]
        return Expr("^", (c[0], c[1])) if c[1] is not None else c[0]

    def rank(self, c: list) -> Rank:  # type: ignore[type-arg]
        return Rank(str(c[0]), str(c[1]), int(c[2]) if c[2].isdigit() else str(c[2]), extent=c[3])  # type: ignore[arg-type]

    def input(self, c: list) -> Tensor:  # type: ignore[type-arg]
        return Tensor(str(c[0]), c[1] or (), str(c[2]), listed=c[3], made=c[4] is not None)  # type: ignore[arg-type]

    def param(self, c: list) -> Tensor:  # type: ignore[type-arg]
        return Tensor(str(c[0]), (), str(c[1]), True, None if c[2] is None else c[2].value)  # type: ignore[arg-type]

    def tile(self, c: list[Token]) -> tuple[str, str, int]:
        return ("tile", str(c[0]), int(c[1]))

    def placed(self, c: list) -> tuple[str, Place | None]:  # type: ignore[type-arg]
        name = str(c[0])
        return name, None if c[1] is None else Place(name, c[1], c[2] or ())

    def out(self, c: list) -> tuple[str, tuple[tuple[str, Place | None], ...]]:  # type: ignore[type-arg]
        return ("out", tuple(c))

    def where(self, c: list[Expr]) -> Expr:
        return c[0]

    def with_(self, c: list) -> tuple[str, ...]:  # type: ignore[type-arg]
        return c[0]  # type: ignore[no-any-return]

    def step(self, c: list[Token]) -> int:
        return int(c[0])

    split = step

    def count(self, c: list[Token]) -> str:
        return str(c[0])

    def range(self, c: list[Expr]) -> Range:
        return Range(*c)

    def einsum(self, c: list) -> Einsum:  # type: ignore[type-arg]
        return Einsum(str(c[0]), c[1] or (), str(c[2]) if c[2] else None, c[3] or (), c[4], c[5])

    def state(self, c: list) -> State:  # type: ignore[type-arg]
        return State(str(c[0]), c[1] or (), str(c[2]), c[3], c[4], c[5])

    def fold(self, c: list) -> Fold:  # type: ignore[type-arg]
        ranges = tuple(x for x in c if isinstance(x, Range))
        rest = [x for x in c if not isinstance(x, Range)]
        rank, aligned, count, step, reverse, tabulated, split, mask, *body = rest
        return Fold(
            str(rank),
            tuple(body),
            mask,
            step or 0,
            ranges,
            tabulated=tabulated is not None,
            split=split or 1,
            aligned=aligned or (),
            count=count,
            reverse=reverse is not None,
        )

    def start(self, c: list) -> Cascade:  # type: ignore[type-arg]
        items = c[2:]
        tagged = [x for x in items if isinstance(x, tuple)]
        outs = [n for x in tagged if x[0] == "out" for n in x[1]]
        tile = tuple((x[1], x[2]) for x in tagged if x[0] == "tile")
        body = tuple(x for x in items if isinstance(x, Einsum | Fold))
        return class_of(body)(
            str(c[0]),
            c[1] or (),
            tuple(x for x in items if isinstance(x, Rank)),
            tuple(x for x in items if isinstance(x, Tensor)),
            body,
            tuple(n for n, _ in outs),
            tile,
            tuple(p for _, p in outs if p is not None),
        )


@functools.cache
def _parser() -> Lark:
    from lark import Lark  # slow to import, and most processes read no cascade

    reducers = "|".join(r.name for r in REDUCERS.values() if not r.replaces)
    return Lark(GRAMMAR.replace("REDUCERS", reducers), parser="lalr", transformer=_Build(), maybe_placeholders=True)


def parse(text: str, file: str = "<cascade>") -> Cascade:
    """Reads the text form. Raises SpecError where it is not a cascade; does not verify (see `ir.verify`)."""
    from lark.exceptions import UnexpectedInput

    try:
        cascade = _parser().parse(text)
    except UnexpectedInput as error:
        raise SpecError("this is not the text form of a cascade", Span(file, error.line, error.column), source=text) from None
    return _resolve(cascade)  # type: ignore[arg-type]


def _resolve(c: Cascade) -> Cascade:
    """Turns the bare names that are ranks into coordinates (sizes of tensors are sizes even where a rank has that name)."""
    from einfuse.ir.rewrite import map_expressions

    ranks = {r.name for r in c.ranks}

    def coordinate(e: Expr) -> Expr | None:
        return ex.index(e.name) if e.op == "size" and e.name in ranks else None

    def replace_all(e: Expr) -> Expr:
        new = coordinate(e)
        return new if new is not None else Expr(e.op, tuple(map(replace_all, e.args)), e.value) if e.args else e

    places = tuple(Place(p.name, p.axes, tuple(map(replace_all, p.index))) for p in c.places)
    return replace(map_expressions(c, replace_all), places=places)
