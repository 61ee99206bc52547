"""What editors show beside a text: ranks that were not written, what passes make of a statement, how a reduction was fused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from einfuse._editor import names
from einfuse._editor.document import Document, Elaborated
from einfuse.dsl import ast
from einfuse.dsl.names import Choice, Held, Source
from einfuse.ir import Rank, Span, SpecError
from einfuse.ir.derivation import Decision
from einfuse.ir.kernels import kernels
from einfuse.ir.passes.chunk import scan_of
from einfuse.ir.rewrite import statements
from einfuse.ir.text import show
from einfuse.runtime import derived, passes
from einfuse.runtime.picture import LENGTH, picture


@dataclass(frozen=True, slots=True)
class Note:
    """Some words at a place of a text."""

    span: Span
    words: str


def ranks(document: Document) -> list[Note]:
    """The ranks of every statement that names none, to be shown behind its target."""
    out = []
    for found in document.attentions:
        for x in written(found):
            held = found.bound.get(x.target.text) if x.ranks is None else None
            if isinstance(held, Held) and held.ranks:
                assert x.target.loc is not None, "statements have places"
                out.append(Note(x.target.loc, f"[{', '.join(held.ranks)}]"))
    return out


def written(found: Elaborated) -> list[ast.Statement | ast.StateLine]:
    """The statements of an attention, those of its scan too."""
    inner = (y for x in found.node.body if isinstance(x, ast.Scan) for y in x.body)
    return [x for x in (*found.node.body, *inner) if isinstance(x, ast.Statement | ast.StateLine)]


def lenses(document: Document) -> list[Note]:
    """One line above every attention: ``3 passes -> 1, 27 % of tiles live at 1024``."""
    out = []
    for found in document.attentions:
        assert found.node.name.loc is not None, "attentions have places"
        try:
            out.append(Note(found.node.name.loc, summary(found)))
        except SpecError:
            continue  # no kernel computes it: a fault says so
    return out


def summary(found: Elaborated) -> str:
    """Passes and live tiles of an attention in a few words."""
    scan = scan_of(found.cascade)
    if scan is not None:
        return f"a scan along {scan.rank}"
    said = [r.counted + f" over {r.rank}" for r in passes.reports(found.cascade)]
    tiles = picture(found.cascade)
    return ", ".join(dict.fromkeys([*said, *([f"{tiles.live} at {LENGTH}"] if tiles is not None else [])])) or "no passes"


def hover(document: Document, line: int, column: int) -> Note | None:
    """What is known of the name at a place, as markdown."""
    found = names.at(document.names, line, column)
    if found is None or document.module is None:
        return None
    name = found.key[2]
    if found.key[1] in ("", "module"):
        said = _definition(document, found)
    else:
        around = document.around(line, column)
        said = "" if around is None or found.key[1] != f"attention {around.node.name}" else _meaning(around, name)
        if found.key[1] == "attention":
            own = next((x for x in document.attentions if x.node.name.text == name), None)
            said = "" if own is None else own.node.doc or document.module.doc
    return Note(found.span, said) if said else None


def _definition(document: Document, found: names.Occurrence) -> str:
    """The head and the docstring of a `def`."""
    from einfuse.dsl.modules import definitions

    try:
        defined = definitions(document.module, document.search)[0].find(found.key[2])  # type: ignore[arg-type]  # it has names
    except SpecError:
        return ""
    written = document.text.split("\n")[found.span.line - 1][found.span.column - 1 :][: found.span.length]
    if defined is None or defined.node.name.text != found.key[2]:
        defined = definitions(document.module, document.search)[0].find(written)  # type: ignore[arg-type]
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
        return _rank(rank, found)
    of = [r.name for r in found.cascade.ranks if r.size == name]
    if of:
        return f"the size of {', '.join(f'`{r}`' for r in of)}"
    match found.bound.get(name):
        case Held() as held:
            over = f"for every {', '.join(found.cascade.over)}" if found.cascade.over else ""
            head = _block(f"{name}[{', '.join(held.ranks)}]: {held.dtype}" if held.ranks else f"{name}: {held.dtype}")
            return "\n\n".join(x for x in (head + over, _stages(found, name), _fused(found, name)) if x)
        case Source() as source:
            axes = f"[{', '.join(source.axes)}]" if source.axes else ""
            return _block(f"in {name}{axes}: {source.dtype}{' optional' if source.optional else ''}")
        case Choice() as choice:
            return _block(f"{name}: enum({', '.join(choice.members)}) = {choice.value}")
    param = next((t for t in found.cascade.inputs if t.name == name and t.param), None)
    return (
        "" if param is None else _block(f"{name}: {param.dtype}" + (f" = {param.default}" if param.default is not None else ""))
    )


def _rank(rank: Rank, found: Elaborated) -> str:
    ambient = ", ambient: every point of it is computed alone" if rank.name in found.cascade.over else ""
    return _block(f"rank {rank.name}: {rank.kind} = {rank.size}") + f"{rank.kind}{ambient}"


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
