"""Syntax tree to cascade: the header, ranks, inputs, then statement by statement."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from einfuse.dsl import ast
from einfuse.dsl.axes import Axes
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.emit import Emitter
from einfuse.dsl.evaluate import Evaluator, Frame
from einfuse.dsl.modules import definitions
from einfuse.dsl.names import Binding, Definitions, Held
from einfuse.dsl.params import Params, parameters
from einfuse.dsl.ranks import check_told, declared
from einfuse.dsl.scan import bind_scan
from einfuse.dsl.signature import chosen
from einfuse.dsl.statement import bind
from einfuse.dsl.values import coordinate, extent
from einfuse.ir import Cascade, Rank, Scalar, SpecError, Statement, Tensor
from einfuse.ir import expr as ex
from einfuse.ir.nodes import class_of


def elaborate(
    module: ast.Module,
    name: str | None = None,
    params: Mapping[str, Scalar | str] | None = None,
    given: Collection[str] | None = None,
    search: Sequence[Path] = (),
) -> Cascade:
    """The cascade of the attention ``name`` (default: the last one of the file).

    ``params`` sets parameters: those known at compile time are folded away, numbers become the new defaults. ``given`` names the
    optional inputs that calls will provide. ``search`` lists the folders of used modules. Raises SpecError.
    """
    return elaborated(module, name, params, given, search)[0]


def elaborated(
    module: ast.Module,
    name: str | None = None,
    params: Mapping[str, Scalar | str] | None = None,
    given: Collection[str] | None = None,
    search: Sequence[Path] = (),
) -> tuple[Cascade, Mapping[str, Binding]]:
    """The same, and what the names of the attention mean where it ends."""
    sources = {module.file: module.source}
    try:
        found, more = definitions(module, search)
        sources |= more
        node = chosen(module, name)
        node = node if node.doc else dataclasses.replace(node, doc=module.doc)
        made = _Attention(node, found, dict(params or {}), frozenset(given or ()))
        return made.cascade(), made.bound
    except SpecError as error:
        source = sources.get(error.loc.file) if error.loc is not None else None
        raise (error.within(source) if source else error) from None


class _Attention:
    """One attention under elaboration."""

    def __init__(self, node: ast.Attention, found: Definitions, params: dict[str, Scalar | str], given: frozenset[str]) -> None:
        self.node, self.definitions = node, found
        self.elements = node.body
        self.params: Params = parameters(node, params, found)
        self.ranks: tuple[Rank, ...] = declared(node, self.params)
        self.names: dict[str, ast.Name] = {}
        self.bound: Mapping[str, Binding] = {}
        self._reserve(given)

    def cascade(self) -> Cascade:
        node = self.node
        over = tuple(map(str, node.over))
        scope: dict[str, Binding] = {**self.params.bindings}
        scope |= {str(r.size): extent(r.size) for r in self.ranks if isinstance(r.size, str) and r.size not in scope}
        scope |= {r.name: coordinate(r.name) for r in self.ranks}
        axes = Axes(self.ranks, self.names, scope)
        inputs = list(self.params.tensors)
        for x in self.elements:
            if isinstance(x, ast.Input):
                tensor, source = axes.input(x, self.given)
                scope[tensor.name] = source
                if source.given:
                    inputs.append(tensor)
        check_told(self.ranks, axes.fresh)
        sizes = {n: extent(n) for n in (*(r.size for r in self.ranks if isinstance(r.size, str)), *axes.fresh)}
        frame = Frame(frozenset(over), sizes, {r.name: r.size for r in self.ranks}, {r.name: r.kind for r in self.ranks})
        body, outs = self._body({**sizes, **scope}, frame)
        made, ranks = class_of(body), _in_use(self.ranks, over, body, inputs)
        return made(node.name.text, over, ranks, _ordered(node, inputs), body, outs, doc=node.doc, loc=node.name.loc)

    def _body(self, scope: dict[str, Binding], frame: Frame) -> tuple[tuple[Statement, ...], tuple[str, ...]]:
        outs = [n for x in self.elements if isinstance(x, ast.Output) for n in x.names]
        emitter = Emitter({*self.names, *scope}, {r.name: n for n, r in enumerate(self.ranks)})
        evaluator = Evaluator(emitter, scope, self.definitions, frame)
        kept = {n.text for n in outs}
        for x in self.elements:
            if isinstance(x, ast.Statement):
                evaluator.scope[x.target.text] = bind(evaluator, x, keep=x.target.text in kept, named=True)
            elif isinstance(x, ast.Scan):
                bind_scan(evaluator, x, kept)
        self._outputs(outs, evaluator.scope)
        self.bound = evaluator.scope
        return tuple(emitter.body), tuple(map(str, outs))  # type: ignore[arg-type]  # states stand in folds by now

    def _outputs(self, outs: list[ast.Name], scope: dict[str, Binding]) -> None:
        node = self.node
        if not outs:
            raise SpecError(f"the attention `{node.name}` has no output", node.name.loc, "name what it computes: out o")
        for n, name in enumerate(outs):
            if name.text in map(str, outs[:n]):
                raise SpecError(f"`{name}` is output twice", name.loc)
            if not isinstance(scope.get(name.text), Held):
                known = [k for k, b in scope.items() if isinstance(b, Held)]
                what = "is not a statement" if name.text in scope else "is not defined"
                raise SpecError(f"the output `{name}` {what}", name.loc, nearest(name.text, known))

    # -- names -----------------------------------------------------------------------------------------------------------

    def _reserve(self, given: frozenset[str]) -> None:
        """Every name of the attention once, before anything is looked up."""
        node = self.node
        for name in (*(p.name for p in node.params), *(n for x in self.elements for n in _declares(x))):
            if name.text in self.names:
                first = self.names[name.text].loc
                raise SpecError(f"`{name}` is declared twice" + (f" (first in line {first.line})" if first else ""), name.loc)
            self.names[name.text] = name
        for r in self.ranks:
            size = r.size if isinstance(r.size, str) else ""
            clash = self.names.get(size)
            if clash is not None:
                raise SpecError(
                    f"`{size}` is already the size of the rank `{r.name}`",
                    clash.loc,
                    f"rename it, or name the size: rank {r.name}: {r.kind} = {size}{r.name}",
                )
        optional = {x.name.text for x in self.elements if isinstance(x, ast.Input) and x.optional}
        wrong = sorted(given - optional)
        if wrong:
            near = nearest(wrong[0], optional)
            raise SpecError(f"`{wrong[0]}` is not an optional input of {node.name}", node.name.loc, near)
        self.given = given


def _declares(x: ast.Element) -> tuple[ast.Name, ...]:
    if isinstance(x, ast.RankLine):
        return x.names
    if isinstance(x, ast.Input):
        return (x.name,)
    if isinstance(x, ast.Scan):
        return tuple(y.target for y in x.body)
    return (x.target,) if isinstance(x, ast.Statement) else ()


def _in_use(
    ranks: Iterable[Rank], over: Collection[str], body: Iterable[Statement], inputs: Iterable[Tensor]
) -> tuple[Rank, ...]:
    """The ranks without those that nothing mentions, where no input tells how long they are: `rank d, e: feature` and no e."""
    lines = [y for x in body for y in (x, *x.lines)]
    values = [e for y in lines for e in y.expressions]
    used = set(over).union(
        *({*y.ranks, *y.over} for x in body for y in x.lines), *(y.over for y in lines), *map(ex.indices, values)
    )
    sizes = set[str]().union(
        *map(ex.sizes, (*values, *(a for t in inputs for a in t.axes), *(r.extent for r in ranks if r.extent)))
    )
    return tuple(r for r in ranks if r.name in used or r.size in sizes or r.extent is not None or not isinstance(r.size, str))


def _ordered(node: ast.Attention, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Tensors in order of declaration, then the numbers."""
    return (*(t for t in inputs if not t.param), *(t for t in inputs if t.param))
