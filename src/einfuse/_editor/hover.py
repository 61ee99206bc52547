"""What is known of the name at a place: what it is, what passes make of its statement, how its reductions were fused."""

from __future__ import annotations

import re
from collections.abc import Iterator

from einfuse._editor import names
from einfuse._editor.document import Document, Elaborated
from einfuse._editor.inside import Note, written
from einfuse._editor.names import Occurrence
from einfuse.dsl import ast
from einfuse.dsl.names import Held, Source
from einfuse.ir import Cascade, SpecError
from einfuse.ir.derivation import Decision
from einfuse.ir.passes.kernels import kernels
from einfuse.ir.rewrite import statements
from einfuse.ir.text import show
from einfuse.runtime import derived, passes


def hover(document: Document, line: int, column: int) -> Note | None:
    """What is known of the name at a place, as markdown."""
    found = names.at(document.names, line, column)
    if found is None or document.module is None:
        return None
    inside, _, owner = found.key[1].partition(" ")
    if owner and inside == "attention":
        around = next((x for x in document.attentions if x.node.name.text == owner), None)
        said = "" if around is None else _meaning(around, found.key[2])
    elif owner:
        said = f"of `{inside} {owner}`"
    elif inside == "attention":
        own = next((x for x in document.module.attentions if x.name.text == found.key[2]), None)
        said = "" if own is None else own.doc or document.module.doc
    else:
        said = _definition(document, found)
    return Note(found.span, said) if said else None


def _definition(document: Document, found: Occurrence) -> str:
    """The head and the docstring of a `def`."""
    start = names.offset(document.text, found.span.line, found.span.column)
    defined = document.definitions.find(document.text[start : start + found.span.length])
    if defined is None:
        return ""
    d = defined.node
    form = str(d.name) + (f"[{', '.join(map(str, d.ranks))}]" if d.ranks else "")
    form += f"({', '.join(map(str, d.params))})" if d.params else ""
    return _block(f"def {form}") + d.doc


def _meaning(found: Elaborated, name: str) -> str:
    """A name of an attention: what it is, then what passes make of it."""
    rank = next((r for r in found.cascade.ranks if r.name == name), None)
    if rank is not None:
        ambient = ", ambient: every point of it is computed alone" if rank.name in found.cascade.over else ""
        return _block(f"rank {rank.name}: {rank.kind} = {rank.size}") + f"{rank.kind}{ambient}"
    param = next((p for p in found.node.params if name in (p.name.text, *map(str, p.members))), None)
    if param is not None:
        return _param(param, found.cascade)
    match found.bound.get(name):
        case Held() as held:
            over = f"for every {', '.join(found.cascade.over)}" if found.cascade.over else ""
            head = _block(f"{name}[{', '.join(held.ranks)}]: {held.dtype}" if held.ranks else f"{name}: {held.dtype}")
            return "\n\n".join(x for x in (head + over, _stages(found, name), _fused(found, name)) if x)
        case Source() as source:
            axes = f"[{', '.join(source.axes)}]" if source.axes else ""
            return _block(f"in {name}{axes}: {source.dtype}{' optional' if source.optional else ''}")
    of = [r.name for r in found.cascade.ranks if r.size == name]
    return (
        f"the size of {', '.join(f'`{r}`' for r in of)}" if of else "a size, bound at the call from the shapes that are found"
    )


def _param(param: ast.Param, cascade: Cascade) -> str:
    """A parameter with its default: one of the call, or one that is folded away."""
    members = f"({', '.join(map(str, param.members))})" if param.members else ""
    default = param.default
    value = (
        default.text
        if isinstance(default, ast.Name)
        else default.value
        if isinstance(default, ast.Number | ast.Truth)
        else None
    )
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    called = any(t.name == param.name.text for t in cascade.inputs)
    what = "a number of the call" if called else "known at compile time"
    return _block(f"{param.name}: {param.type}{members}" + ("" if value is None else f" = {shown}")) + what


def _stages(found: Elaborated, name: str) -> str:
    """The lines of a statement in the cascade as elaborated, and after the last pass where they differ."""
    built = _lines(show(found.cascade), name)
    try:
        last = [x for k in kernels(found.cascade) for x in _lines(show(derived.fused(k)), name)]
    except SpecError:
        last = []
    out = f"as elaborated\n{_block(chr(10).join(built))}" if built else ""
    return out + (f"after the passes\n{_block(chr(10).join(last))}" if last and last != built else "")


def _lines(text: str, name: str) -> list[str]:
    pattern = re.compile(rf"^\s*(?:state )?{re.escape(name)}(?:_\d+)?(?:\[| =)")
    return [x.strip() for x in text.splitlines() if pattern.match(x)]


def _fused(found: Elaborated, name: str) -> str:
    """How every read of a statistic was resolved that the statement or what was made of it takes part in."""
    mine = {name, *_made(found, name)}
    said = []
    try:
        for report in passes.reports(found.cascade):
            said += [_decided(d) for d in report.decisions if d.reader in mine or d.statistic in mine]
    except SpecError:
        return ""
    return "\n".join(f"- {x}" for x in dict.fromkeys(said))


def _made(found: Elaborated, name: str) -> Iterator[str]:
    """The statements that were made of the text of a statement: what its definitions and its reductions became."""
    node = next((x for x in written(found) if x.target.text == name), None)
    if node is None or node.loc is None:
        return
    calls = [n.loc for n, _ in ast.walk(node) if isinstance(n, ast.Call | ast.Read) and n.loc is not None]
    for x in statements(found.cascade):
        if x.loc in calls or (x.loc is not None and x.loc == node.target.loc):
            yield x.target


def _decided(d: Decision) -> str:
    """One decision in words."""
    proof = {"proven": "proven", "sampled": "checked on samples", "exact": "exact"}[d.proof]
    if d.how == "cut":
        return (
            f"`{d.reader}` waits for `{d.statistic}`: one more pass ({d.detail})"
            if d.detail
            else f"`{d.reader}` waits for `{d.statistic}`"
        )
    words = {
        "carry": "is corrected when it moves",
        "defer": "is applied afterwards",
        "tower": "is corrected with its derivatives",
    }
    return f"`{d.reader}` shares the pass of `{d.statistic}`: it {words[d.how]}, `{d.detail}` ({proof})"


def _block(text: str) -> str:
    return f"```attn\n{text}\n```\n"
