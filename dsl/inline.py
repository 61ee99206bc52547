"""Filling in definitions: each call runs the body in a scope of its own that sees the definition's ranks and parameters only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.dsl import ast
from einfuse.dsl.emit import load_held, mask_of
from einfuse.dsl.names import Binding, Defined, Held
from einfuse.dsl.statement import bind
from einfuse.dsl.values import Value
from einfuse.ir import Einsum, Span

if TYPE_CHECKING:
    from einfuse.dsl.evaluate import Evaluator

MAX_INLINING = 60
_OWN_COST = 3  # levels of nesting that one call adds to those of its body


class Inliner:
    """Fills in the calls of one evaluator."""

    def __init__(self, caller: Evaluator) -> None:
        self.caller = caller

    def call(self, found: Defined, e: ast.Call) -> Value:
        """The value of calling a definition."""
        d, caller = found.node, self.caller
        self._check(d, e)
        if d.name.text in caller.inside:
            path = " -> ".join((*caller.inside[caller.inside.index(d.name.text) :], d.name.text))
            raise caller.fault(f"the definition `{d.name}` uses itself: {path}", e, "the language has no recursion")
        if len(caller.inside) >= MAX_INLINING:
            raise caller.fault(f"definitions call each other more than {MAX_INLINING} levels deep", e)
        scope: dict[str, Binding] = {}
        for rank, at in zip(d.ranks, e.ranks or (), strict=True):
            value = caller.value(at)
            if value.dtype != "int":
                raise caller.fault(f"`{d.name}` takes a rank or an integer for `{rank}`", at)
            scope[rank.text] = value
        for param, arg in zip(d.params, e.args, strict=True):
            scope[param.text] = self._argument(d, param.text, arg)
        inner = type(caller)(
            caller.emitter,
            scope,
            found.home,
            caller.frame,
            d.name.text,
            caller.site or (e.loc if _foreign(d.loc, e.loc) else None),
            caller.level + _OWN_COST,
            (*caller.inside, d.name.text),
        )
        for statement in d.body:
            inner.scope[statement.target.text] = bind(inner, statement)
        inner.target = d.name.text
        value = inner.value(d.result)
        caller.reduced |= inner.reduced
        return self._result(d, value, e)

    def _result(self, d: ast.Definition, value: Value, e: ast.Call) -> Value:
        """The result of a block is a statement named after the definition; that of a one-expression form is filled in."""
        if not d.block or value.cheap:
            return value
        return load_held(self._stored(d.name.text, value, e)).at(self.caller.place(e))

    def _stored(self, hint: str, value: Value, at: ast.Expr) -> Held:
        emitter = self.caller.emitter
        ranks = emitter.sorted(value.ranks - self.caller.ambient)
        return emitter.unnamed(Einsum(hint, ranks, None, (), value.expr, mask_of(None, value), self.caller.place(at)), value)

    def argument(self, name: str, e: ast.Expr) -> Binding:
        """The value of ``e`` under a name that may be read many times: a statement, unless it is a name or a leaf itself."""
        if isinstance(e, ast.Name):
            binding = self.caller.scope.get(e.text)
            if isinstance(binding, Held | Value):
                return binding
        value = self.caller.value(e)
        return value if value.cheap else self._stored(name, value, e)

    def _argument(self, d: ast.Definition, param: str, arg: ast.Expr) -> Binding:
        """A name stands for what it names; another value that is used more than once, or at other indices, becomes a statement."""
        caller = self.caller
        if isinstance(arg, ast.Name):
            binding = caller.scope.get(arg.text)
            if binding is not None:
                return binding
        value = caller.value(arg)
        key = (id(d), param)
        if key not in caller.frame.uses:
            caller.frame.uses[key] = _uses(d, param)
        uses, indexed = caller.frame.uses[key]
        if indexed or (uses > 1 and not value.cheap):
            return self._stored(arg.name.text if isinstance(arg, ast.Call) else param, value, arg)
        return value

    def _check(self, d: ast.Definition, e: ast.Call) -> None:
        form = f"{d.name}" + (f"[{', '.join(map(str, d.ranks))}]" if d.ranks else "")
        form += f"({', '.join(map(str, d.params))})" if d.params else ""
        if len(e.ranks or ()) != len(d.ranks):
            wanted = f"{len(d.ranks)} rank{'' if len(d.ranks) == 1 else 's'}" if d.ranks else "no ranks"
            raise self.caller.fault(f"`{d.name}` takes {wanted}, found {len(e.ranks or ())}", e, f"it is {form}")
        if len(e.args) != len(d.params):
            wanted = f"{len(d.params)} argument{'' if len(d.params) == 1 else 's'}" if d.params else "no arguments"
            raise self.caller.fault(f"`{d.name}` takes {wanted}, found {len(e.args)}", e, f"it is {form}")


def _uses(d: ast.Definition, param: str) -> tuple[int, bool]:
    """How often the body reads a parameter, and whether it does so at explicit indices."""
    count, indexed = 0, False
    for node in (*d.body, d.result):
        for n, _ in ast.walk(node):
            if isinstance(n, ast.Name) and n.text == param:
                count += 1
            indexed = indexed or (isinstance(n, ast.Read) and n.name.text == param)
    return count, indexed


def _foreign(definition: Span | None, call: Span | None) -> bool:
    return definition is not None and call is not None and definition.file != call.file
