"""An attention as it shows itself: in one line, and in a notebook with its equations, its passes and the tiles of its mask."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

from einfuse.ir import Cascade, SpecError
from einfuse.ir.text import show, show_expr
from einfuse.runtime.passes import PassReport, reports
from einfuse.runtime.picture import LENGTH, Picture, picture

if TYPE_CHECKING:
    from einfuse.runtime.attention import Attention


def line(cascade: Cascade) -> str:
    """``<einfuse attention causal(q[b, h, i, d], ..., window=64) -> o>``"""
    tensors = (f"{t.name}[{', '.join(map(show_expr, t.axes))}]" if t.axes else t.name for t in cascade.inputs if not t.param)
    numbers = (t.name if t.default is None else f"{t.name}={t.default}" for t in cascade.inputs if t.param)
    return f"<einfuse attention {cascade.name}({', '.join((*tensors, *numbers))}) -> {', '.join(cascade.outs)}>"


def bundle(attention: Attention) -> dict[str, str]:
    """What a notebook shows, by MIME type."""
    cascade = attention.cascade
    try:
        found, drawn = reports(cascade), picture(cascade)
    except SpecError:  # it is interpreted, or its kernels are those of another form
        found, drawn = (), None
    return {"text/plain": _text(cascade, found, drawn), "text/html": _html(cascade, found, drawn)}


def _text(cascade: Cascade, found: Iterable[PassReport], drawn: Picture | None) -> str:
    out = [line(cascade), show(cascade).rstrip()]
    out += [f"over {r.rank}: {r.counted}" for r in found]
    out += [f"{drawn.live} at {LENGTH}"] if drawn is not None else []
    return "\n".join(out)


def _html(cascade: Cascade, found: Iterable[PassReport], drawn: Picture | None) -> str:
    doc = cascade.doc.strip().split("\n")[0]
    out = [f"<b>{html.escape(cascade.name)}</b>" + (f": {html.escape(doc)}" if doc else "")]
    out.append(f"<pre>{html.escape(show(cascade).rstrip())}</pre>")
    for r in found:
        out.append(f"<p>over <code>{html.escape(r.rank)}</code>: {html.escape(r.counted)}</p>")
        out.append(_table(("statistic", "read by", "how", "with", "proof"), map(_row, r.decisions)) if r.decisions else "")
    if drawn is not None:
        words = f"tiles of {drawn.tile[0]} x {drawn.tile[1]}: {drawn.live} at {LENGTH}, where {show_expr(drawn.mask)}"
        out.append(f"<figure>{drawn.svg()}<figcaption>{html.escape(words)}</figcaption></figure>")
    return "\n".join(x for x in out if x)


def _row(d: object) -> tuple[str, ...]:
    return tuple(str(getattr(d, name)) for name in ("statistic", "reader", "how", "detail", "proof"))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = ["".join(f"<th>{html.escape(x)}</th>" for x in head)]
    lines += ["".join(f"<td>{html.escape(x)}</td>" for x in row) for row in rows]
    return "<table>" + "".join(f"<tr>{x}</tr>" for x in lines) + "</table>"
