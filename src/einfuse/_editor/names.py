"""What every name of a text stands for: where it is defined, and where else it is used, across the files that `use` each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from einfuse import dsl
from einfuse.dsl import ast
from einfuse.dsl.modules import HERE, builtin, definitions, prelude
from einfuse.dsl.names import Defined, Definitions
from einfuse.dsl.ranks import FIRST
from einfuse.ir import Span, SpecError

Key = tuple[str, str, str]
"""The file of a definition, the attention or `def` that the name belongs to (empty: the whole file), and the name."""


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One place where a name stands. ``target`` is where it is defined, which for a size that no text names is its rank."""

    span: Span
    key: Key
    target: Span | None = None

    @property
    def defines(self) -> bool:
        return self.target == self.span

    def holds(self, line: int, column: int) -> bool:
        """Is the place within the name, or right behind it?"""
        return self.span.line == line and self.span.column <= column <= self.span.column + self.span.length


def occurrences(module: ast.Module, search: Sequence[Path] = ()) -> list[Occurrence]:
    """Every name of the text that is defined in it, in a file it uses, or in the prelude."""
    return list(_Walk(module, search).all())


def seen(module: ast.Module, search: Sequence[Path] = ()) -> Definitions:
    """What calls in a text can mean; without what it uses where that cannot be read, for a fault says so."""
    try:
        return definitions(module, search)[0]
    except SpecError:
        out = Definitions(outer=prelude())
        out.own |= {d.name.text: Defined(d, out) for d in module.definitions}
        return out


def at(found: Iterable[Occurrence], line: int, column: int) -> Occurrence | None:
    """The name at a place (lines and columns count from 1)."""
    return next((x for x in found if x.holds(line, column)), None)


def offset(text: str, line: int, column: int) -> int:
    """The number of characters before a place."""
    return sum(len(x) + 1 for x in text.split("\n")[: line - 1]) + column - 1


def same_file(file: str) -> str:
    """One name for a file, however it was reached; what is no file keeps its name."""
    path = HERE / file if file == "prelude.attn" else Path(file)
    return str(path.resolve()) if path.exists() else file


Scope = Mapping[str, tuple[Key, Span | None]]


class _Walk:
    def __init__(self, module: ast.Module, search: Sequence[Path]) -> None:
        self.module, self.search = module, search
        self.file = same_file(module.file)
        self.definitions = seen(module, search)

    def all(self) -> Iterator[Occurrence]:
        for use in self.module.uses:
            yield from self._use(use)
        for d in self.module.definitions:
            yield self._defining(d.name, "")
            own = (*d.ranks, *d.params, *(s.target for s in d.body))
            scope = self._scope(f"def {d.name}", own)
            yield from (Occurrence(_loc(n), *scope[n.text]) for n in own)
            for e in (*(x for s in d.body for x in _parts(s)), d.result):
                yield from self._expression(e, scope)
        for a in self.module.attentions:
            yield self._defining(a.name, "attention")
            yield from self._attention(a)

    def _use(self, use: ast.Use) -> Iterator[Occurrence]:
        path = next((p for d in (*self.search, HERE) if (p := Path(d) / f"{use.module}.attn").is_file()), None)
        if path is None:
            return
        file = same_file(str(path))
        yield Occurrence(_loc(use.module), (file, "module", ""), Span(str(path), 1, 1))
        found = self.definitions.find(use.name.text) if use.name is not None else None
        if use.name is not None and found is not None:
            yield Occurrence(_loc(use.name), (file, "", use.name.text), found.node.name.loc)

    def _attention(self, a: ast.Attention) -> Iterator[Occurrence]:
        inside = f"attention {a.name}"
        scans = [y for x in a.body if isinstance(x, ast.Scan) for y in x.body]
        ranks = [n for x in a.body if isinstance(x, ast.RankLine) for n in x.names]
        over = [n for n in a.over if n.text not in map(str, ranks)]
        statements = [x for x in (*a.body, *scans) if isinstance(x, ast.Statement | ast.StateLine)]
        inputs = [x for x in a.body if isinstance(x, ast.Input)]
        members = [m for p in a.params for m in p.members]
        slots = [n.slot for x in statements for n, _ in ast.walk(x.value) if isinstance(n, ast.Call) and n.slot is not None]
        own = [p.name for p in a.params] + over + ranks + [x.name for x in inputs] + [s.target for s in statements] + members
        scope = {**self._sizes(a, inside, [*over, *ranks]), **self._scope(inside, own)}
        sizes = [x.size for x in a.body if isinstance(x, ast.RankLine) and x.size is not None]
        for size in (*sizes, *(e for x in inputs for e in x.axes)):  # what no rank brings is named by its first use
            for n in (n for n, _ in ast.walk(size) if isinstance(n, ast.Name) and not builtin(n.text)):
                scope.setdefault(n.text, ((self.file, inside, n.text), n.loc))
        yield from (Occurrence(_loc(n), *scope[n.text]) for n in own)
        uses = [n for n in a.over if n not in over] + [n for x in a.body if isinstance(x, ast.Output) for n in x.names]
        uses += [n for s in statements for n in s.ranks or ()] + [x.rank for x in a.body if isinstance(x, ast.Scan)] + slots
        expressions: list[ast.Expr] = [e for p in a.params if (e := p.default) is not None]
        expressions += [*sizes, *(e for x in inputs for e in x.axes)] + [e for s in statements for e in _parts(s, ranks=False)]
        for e in (*uses, *expressions):
            yield from self._expression(e, scope)

    def _sizes(self, a: ast.Attention, inside: str, ranks: list[ast.Name]) -> dict[str, tuple[Key, Span | None]]:
        """The sizes that ranks have by themselves: `Nq` leads to the first query rank."""
        kinds = {n.text: x.kind.text for x in a.body if isinstance(x, ast.RankLine) for n in x.names}
        first = dict(FIRST)
        named = {n.text: first.pop(kinds.get(n.text, ""), n.text.upper()) for n in ranks}
        return {named[n.text]: ((self.file, inside, named[n.text]), n.loc) for n in ranks}

    def _scope(self, inside: str, own: Iterable[ast.Name]) -> dict[str, tuple[Key, Span | None]]:
        out: dict[str, tuple[Key, Span | None]] = {}
        for n in own:
            out.setdefault(n.text, ((self.file, inside, n.text), n.loc))
        return out

    def _defining(self, name: ast.Name, inside: str) -> Occurrence:
        return Occurrence(_loc(name), (self.file, inside, name.text), name.loc)

    def _expression(self, e: ast.Expr | ast.Name, scope: Scope) -> Iterator[Occurrence]:
        """Names of an expression, without recursion but for the names that a `repeat` binds."""
        stack: list[ast.Node] = [e]
        while stack:
            node = stack.pop()
            if isinstance(node, ast.Name):
                found = self._meaning(node, scope)
                if found is not None:
                    yield found
            elif isinstance(node, ast.Repeat):
                place = f"repeat {_loc(node).line}:{_loc(node).column}"
                inner = {**scope, **self._scope(place, node.names)}
                yield from (Occurrence(_loc(n), *inner[n.text]) for n in node.names)
                for step in node.steps:
                    yield from self._expression(step, inner)
                stack += [node.count, *node.starts]
            else:
                stack += reversed([x for x in ast.children(node) if not (isinstance(node, ast.Call) and x is node.slot)])

    def _meaning(self, name: ast.Name, scope: Scope) -> Occurrence | None:
        known = scope.get(name.text)
        if known is not None:
            return Occurrence(_loc(name), *known)
        found = self.definitions.find(name.text)
        if found is None or found.node.name.loc is None:
            return None
        home = found.node.name
        file = same_file(_loc(home).file)
        target = dataclasses.replace(_loc(home), file=file if home.loc and home.loc.file == "prelude.attn" else _loc(home).file)
        return Occurrence(_loc(name), (file, "", home.text), target)


def _parts(s: ast.Statement | ast.StateLine, ranks: bool = True) -> Iterator[ast.Expr]:
    if ranks:
        yield from s.ranks or ()
    yield s.value
    last = s.where if isinstance(s, ast.Statement) else s.initial
    if last is not None:
        yield last


def _loc(node: ast.Node) -> Span:
    found = None if isinstance(node, ast.Module) else node.loc
    assert found is not None, "parsed nodes have places"
    return found


def references(
    module: ast.Module, line: int, column: int, search: Sequence[Path] = (), others: Iterable[Path] = ()
) -> list[Span]:
    """Every place of the name at a place, its definition first: in this text, and in ``others`` where it is seen from there."""
    own = occurrences(module, search)
    found = at(own, line, column)
    if found is None:
        return []
    every = list(own)
    if found.key[1] in ("", "module"):  # another file may use it
        for path in others:
            if same_file(str(path)) != same_file(module.file):
                every += _of_file(path)
    spans = [x.span for x in every if x.key == found.key]
    first = [x.target for x in every if x.key == found.key and x.target is not None][:1]
    return list(dict.fromkeys([*first, *spans]))


def _of_file(path: Path) -> list[Occurrence]:
    try:
        return occurrences(dsl.parse(dsl.read_spec(path), str(path)), (path.parent,))
    except (SpecError, OSError):
        return []
