"""What is right and may be meant otherwise: `einfuse check` says it of texts without a fault."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from einfuse.dsl import ast
from einfuse.ir import SpecError

ABSENT = "the condition says nothing about {ranks}: where it fails, `{name}` does not exist, and no more does what reads it"
INSTEAD = "`... if ... else 0` inside of `{name}` is a number there; points are left out more plainly by a `where` behind the statement"


def hints(module: ast.Module) -> list[SpecError]:
    """Reductions over features alone whose own `where` is about other ranks. Reductions over queries or keys have a value in every row."""
    return [found for node in module.attentions for found in _of(node, module.source, module.file)]


def _of(node: ast.Attention, text: str, file: str) -> Iterator[SpecError]:
    lines = [x for x in node.body if isinstance(x, ast.RankLine)]
    features = {n.text for x in lines if x.kind.text == "feature" for n in x.names}
    ranks = {n.text for x in lines for n in x.names} | {n.text for n in node.over}
    tensors = {x.name.text for x in node.body if isinstance(x, ast.Input)} | {
        x.target.text for x in _nodes(node) if isinstance(x, ast.Statement)
    }
    for call in (x for x in _nodes(node) if isinstance(x, ast.Call) and x.where is not None and x.ranks):
        over = {r.text for r in call.ranks or () if isinstance(r, ast.Name)}
        if len(over) != len(call.ranks or ()) or not over <= features:
            continue
        names = {x.text for x in _nodes(call.where) if isinstance(x, ast.Name)}
        if names & ranks and not names & (over | tensors):
            shown = ", ".join(f"`{r}`" for r in sorted(over))
            message, hint = (m.format(ranks=shown, name=call.name.text) for m in (ABSENT, INSTEAD))
            yield SpecError(message, call.where.loc, hint).within(text, file)  # type: ignore[union-attr]  # there is one


def _nodes(node: object) -> Iterator[object]:
    """A node and everything below it."""
    yield node
    if isinstance(node, tuple):
        for x in node:
            yield from _nodes(x)
    elif dataclasses.is_dataclass(node) and type(node).__module__ == ast.__name__:
        for f in dataclasses.fields(node):
            yield from _nodes(getattr(node, f.name))
