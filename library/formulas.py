"""The statements of a cascade as formulas: MathML, which browsers set by themselves, so that a page needs nothing for them."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import assert_never

from einfuse.ir import Cascade, Einsum, Expr, Fold
from einfuse.ir.nodes import State

SIGNS = {
    "<=": "\u2264",
    ">=": "\u2265",
    "!=": "\u2260",
    "==": "=",
    "-": "\u2212",
    "and": "\u2227",
    "or": "\u2228",
    "%": "mod",
    "//": "div",
}
"""Signs that formulas have others for."""
STRENGTH = {"or": 1, "and": 2, **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), 3), "+": 4, "-": 4, "*": 5, "%": 5, "//": 5}
"""How strongly an operator binds; whatever is no operator binds most."""
MOST = 9
BIG = {"sum": "\u2211", "prod": "\u220f", "max": "max", "min": "min", "any": "\u22c1"}


def formulas(cascade: Cascade) -> str:
    """A line for every statement, in order; those of a scan are indented below its rank."""
    rows = [row for x in cascade.body for row in _statement(cascade, x)]
    return f'<math><mtable displaystyle="true">{"".join(map(_row, rows))}</mtable></math>'


def _row(inside: str) -> str:
    return f'<mtr><mtd style="text-align: left">{inside}</mtd></mtr>'


def _statement(cascade: Cascade, x: Einsum | Fold) -> list[str]:
    match x:
        case Einsum():
            return [_line(cascade, x, "=")]
        case Fold():
            lines = [_line(cascade, y, "\u2190" if isinstance(y, State) else "=") for y in x.body]
            order = "the last to the first" if x.reverse else "the first to the last"
            return [_words(f"for {x.rank} from {order}:"), *map(_indented, lines)]
    assert_never(x)


def _indented(line: str) -> str:
    return f'<mspace width="2em"/>{line}'


def _line(cascade: Cascade, x: Einsum | State, sign: str) -> str:
    big = _big(x.red, x.over) if x.red and x.over else ""
    line = f"{_indexed(x.target, [_name(r) for r in x.ranks])}<mo>{sign}</mo>{big}{_shown(cascade, x.map, STRENGTH['+'] if big else 0)}"
    return line if x.mask is None else f'{line}<mspace width="1em"/>{_words("where")}{_shown(cascade, x.mask, 0)}'


def _big(red: str, over: Sequence[str]) -> str:
    sign = f"<mo>{BIG[red]}</mo>" if red in BIG else f"<mi>{red}</mi>"
    below = "<mo>,</mo>".join(map(_name, over))
    return f'<munder>{sign}<mrow>{below}</mrow></munder><mspace width="0.2em"/>'


def _shown(cascade: Cascade, e: Expr, around: int) -> str:
    """The expression, in brackets where what is around it binds more strongly."""
    inner = _inner(cascade, e)
    return inner if STRENGTH.get(e.op, MOST) > around or e.op not in STRENGTH else _bracketed(inner)


def _inner(cascade: Cascade, e: Expr) -> str:
    def part(n: int, around: int = 0) -> str:
        return _shown(cascade, e.args[n], around)

    if e.op in STRENGTH:
        own = STRENGTH[e.op]
        sign = '<mspace width="0.2em"/>' if e.op == "*" else f"<mo>{html.escape(SIGNS.get(e.op, e.op))}</mo>"
        return f"{part(0, own - 1)}{sign}{part(1, own)}"
    if e.op in LAYOUT:
        return LAYOUT[e.op](part)
    match e.op:
        case "const":
            return f"<mn>{str(e.value).lower()}</mn>" if isinstance(e.value, bool) else f"<mn>{e.value:g}</mn>"
        case "index" | "size":
            return _name(e.name)
        case "load":
            return _indexed(e.name, _own(cascade, e))
        case "in":
            element, *index = _own(cascade, e)
            return f"{element}<mo>\u2208</mo>{_indexed(e.name, index)}"
    return f"<mi>{e.op}</mi>{_bracketed('<mo>,</mo>'.join(map(part, range(len(e.args)))))}"


def _own(cascade: Cascade, e: Expr) -> list[str]:
    """The indices of a read, without those of ambient ranks that stand where these do."""
    ambient = [a.op == "index" and a.name in cascade.over and n < len(cascade.over) for n, a in enumerate(e.args)]
    return [_shown(cascade, a, 0) for a, gone in zip(e.args, ambient, strict=True) if not gone]


LAYOUT: Mapping[str, Callable[[Callable[..., str]], str]] = {
    "/": lambda part: f"<mfrac><mrow>{part(0)}</mrow><mrow>{part(1)}</mrow></mfrac>",
    "sqrt": lambda part: f"<msqrt>{part(0)}</msqrt>",
    "exp": lambda part: f"<msup><mi>e</mi><mrow>{part(0)}</mrow></msup>",
    "^": lambda part: f"<msup><mrow>{part(0, MOST - 1)}</mrow><mrow>{part(1)}</mrow></msup>",
    "neg": lambda part: f"<mo>\u2212</mo>{part(0, STRENGTH['+'])}",
    "abs": lambda part: f"<mo>|</mo>{part(0)}<mo>|</mo>",
    "not": lambda part: f"<mo>\u00ac</mo>{part(0, MOST - 1)}",
    "select": lambda part: _bracketed(f"{part(1)}{_words('if')}{part(0)}{_words('else')}{part(2)}"),
    "float": lambda part: part(0),
    "stop": lambda part: part(0),
}
"""Functions that formulas set in another way than by their name and brackets."""


def _bracketed(inner: str) -> str:
    return f"<mrow><mo>(</mo>{inner}<mo>)</mo></mrow>"


def _name(text: str) -> str:
    return f"<mi>{html.escape(text)}</mi>"


def _words(text: str) -> str:
    return f'<mspace width="0.5em"/><mtext>{html.escape(text)}</mtext><mspace width="0.5em"/>'


def _indexed(name: str, index: Sequence[str]) -> str:
    return _name(name) if not index else f"<msub>{_name(name)}<mrow>{'<mo>,</mo>'.join(index)}</mrow></msub>"
