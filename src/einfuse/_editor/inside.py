"""What editors show in a text: the ranks that were not written, and a line above every attention."""

from __future__ import annotations

from dataclasses import dataclass

from einfuse._editor.document import Document, Elaborated
from einfuse.dsl import ast
from einfuse.dsl.names import Held
from einfuse.ir import Scan, Span, SpecError
from einfuse.runtime import passes
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
    if isinstance(found.cascade, Scan):
        return f"a scan along {found.cascade.fold.rank}"
    said = [r.counted + f" over {r.rank}" for r in passes.reports(found.cascade)]
    tiles = picture(found.cascade)
    return ", ".join(dict.fromkeys([*said, *([f"{tiles.live} at {LENGTH}"] if tiles is not None else [])])) or "no passes"
