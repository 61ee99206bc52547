"""Expressions of the syntax tree to typed IR values; reductions inside them become statements of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from einfuse.dsl import ast
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.emit import Emitter, load_held
from einfuse.dsl.inline import Inliner
from einfuse.dsl.modules import REDUCERS, SPECIAL
from einfuse.dsl.names import Binding, Choice, Definitions, Held, Source, unknown
from einfuse.dsl.reduce import Reducer
from einfuse.dsl.select import member
from einfuse.dsl.special import Special
from einfuse.dsl.values import MAX_DEPTH, Value, apply, constant, read, rename_plain
from einfuse.ir import FUNCTIONS, RankKind, Span, SpecError


@dataclass(frozen=True, slots=True)
class Frame:
    """What holds in the whole attention, definitions included: its sizes by name, and the size of each rank."""

    ambient: frozenset[str]
    sizes: Mapping[str, Value]
    extents: Mapping[str, int | str]
    kinds: Mapping[str, RankKind]
    uses: dict[tuple[int, str], tuple[int, bool]] = field(default_factory=dict)  # of parameters, kept by `Inliner`


class Evaluator:
    """Evaluates in one scope; `Inliner` makes another one for the body of each definition."""

    def __init__(
        self,
        emitter: Emitter,
        scope: dict[str, Binding],
        definitions: Definitions,
        frame: Frame,
        target: str = "x",
        site: Span | None = None,
        level: int = 0,
        inside: tuple[str, ...] = (),
    ) -> None:
        self.emitter, self.scope, self.definitions, self.frame = emitter, scope, definitions, frame
        self.ambient = frame.ambient
        self.target, self.site, self.level, self.inside = target, site, level, inside
        self.reduced: set[str] = set()  # ranks that the statement at hand reduces over
        self.inliner = Inliner(self)

    # -- places and errors -----------------------------------------------------------------------------------------------

    def place(self, node: ast.Node) -> Span | None:
        """Where to point for ``node``: into another file's definition, at the call that led there."""
        return self.site or (None if isinstance(node, ast.Module) else node.loc)

    def fault(self, message: str, node: ast.Node, hint: str = "") -> SpecError:
        return SpecError(message, self.place(node), hint)

    def _unknown(self, name: ast.Name, what: str, known: list[str]) -> SpecError:
        error = unknown(name, what, known)
        error.loc = self.place(name)
        return error

    # -- expressions -----------------------------------------------------------------------------------------------------

    def value(self, e: ast.Expr) -> Value:
        """The value of ``e``. Raises SpecError where it has none."""
        self.level += 1
        self.emitter.step(self.place(e))
        if self.level > MAX_DEPTH:
            raise self.fault(f"this is nested more than {MAX_DEPTH} levels deep once definitions are filled in", e)
        try:
            match e:
                case ast.Number() | ast.Truth():
                    return constant(e.value).at(self.place(e))
                case ast.Name():
                    return self._name(e)
                case ast.Read():
                    return self._read(e)
                case ast.Call():
                    return self._call(e)
                case ast.Unary():
                    return apply(e.op, (self.value(e.operand),), self.place(e))
                case ast.Binary():
                    return self._binary(e)
                case ast.Compare():
                    return self._compare(e)
                case ast.Member():
                    return member(self, e)
                case ast.Conditional():
                    return self._conditional(e)
                case ast.Repeat():
                    return Special(self).repeat(e)
        finally:
            self.level -= 1

    def condition(self, e: ast.Expr) -> Value:
        """A ``where``."""
        value = self.value(e)
        if value.dtype != "bool":
            raise self.fault("a `where` takes a condition, found a number", e, "compare the number with something: x != 0")
        return value

    def _name(self, name: ast.Name) -> Value:
        binding = self.scope.get(name.text) or self.frame.sizes.get(name.text)
        if binding is None:
            return self._bare_definition(name)
        return self.bound(binding, name)

    def bound(self, binding: Binding, name: ast.Name) -> Value:
        """A binding read without indices."""
        if isinstance(binding, Value):
            return dataclasses.replace(binding, expr=dataclasses.replace(binding.expr, loc=self.place(name)))
        if isinstance(binding, Held):
            return binding.inline.at(self.place(name)) if binding.inline else load_held(binding).at(self.place(name))
        if isinstance(binding, Choice):
            raise self.fault(
                f"`{name}` is a choice among {', '.join(binding.members)} and can only be compared",
                name,
                f"write {name} == {binding.members[0]}",
            )
        self.must_be_given(binding, name)
        for n, at in enumerate(binding.access):
            if at is None:
                axis = binding.axes[n]
                near = nearest(axis, list(self.frame.extents))
                raise self.fault(
                    f"axis {n + 1} of `{name}` is the size `{axis}`, which has no coordinate of its own",
                    name,
                    near or f"read it with explicit indices: {name}[{', '.join(binding.axes[:n])}{', ' if n else ''}...]",
                )
        args = tuple(at for at in binding.access if at is not None)
        return read(binding.name, binding.dtype, args, plain=binding.dtype != "float").at(self.place(name))

    def must_be_given(self, source: Source, name: ast.Name) -> None:
        """Raises SpecError for an optional input that this call is compiled without."""
        if not source.given:
            raise self.fault(
                f"the optional input `{source.name}` is not given here",
                name,
                f"guard the read: {source.name} if given({source.name}) else ...",
            )

    def _bare_definition(self, name: ast.Name) -> Value:
        found = self.definitions.find(name.text)
        if found is not None:
            d = found.node
            ranks = f"[{', '.join(map(str, d.ranks))}]" if d.ranks else ""
            params = f"({', '.join(map(str, d.params))})" if d.params else ""
            raise self.fault(f"`{name}` is a definition", name, f"call it: {name}{ranks}{params}")
        if name.text in FUNCTIONS or name.text in REDUCERS:
            raise self.fault(f"`{name}` is a function", name, f"call it: {name}(x)")
        raise self._unknown(name, "the name", [*self.scope, *self.definitions])

    # -- reads -----------------------------------------------------------------------------------------------------------

    def _read(self, e: ast.Read) -> Value:
        binding = self.scope.get(e.name.text)
        if binding is None:
            found = self.definitions.find(e.name.text)
            if found is not None:
                return self.inliner.call(found, ast.Call(e.name, e.args, (), None, e.loc))
            if e.name.text in REDUCERS:
                ranks = ", ".join(str(a) for a in e.args if isinstance(a, ast.Name))
                raise self.fault(
                    f"the reducer `{e.name}` needs an operand", e, f"the operand stands in parentheses: {e.name}[{ranks}](x)"
                )
            raise self._unknown(e.name, "the name", [*self.scope, *self.definitions])
        args = tuple(map(self.index, e.args))
        if isinstance(binding, Source):
            self.must_be_given(binding, e.name)
            self._arity(e, len(binding.access), f"{e.name}[{', '.join(binding.axes)}]")
            return read(binding.name, binding.dtype, args, plain=binding.dtype != "float").at(self.place(e))
        if isinstance(binding, Held):
            self._arity(e, len(binding.ranks), f"{e.name}[{', '.join(binding.ranks)}]")
            if binding.inline is not None:
                return rename_plain(binding.inline, dict(zip(binding.ranks, args, strict=True))).at(self.place(e))
            return load_held(binding, args).at(self.place(e))
        raise self.fault(f"`{e.name}` is a single number and takes no indices", e, f"write {e.name}")

    def index(self, e: ast.Expr) -> Value:
        """An index. Raises SpecError where it is no integer."""
        value = self.value(e)
        if value.dtype != "int":
            found = "a condition" if value.dtype == "bool" else "a float"
            raise self.fault(f"an index is an integer, found {found}", e, "write floor(x) or int(condition)")
        return value

    def _arity(self, e: ast.Read, wanted: int, shape: str) -> None:
        if len(e.args) != wanted:
            indices_ = "one index" if wanted == 1 else f"{wanted} indices"
            ambient = ", ".join(sorted(self.ambient & {a.text for a in e.args if isinstance(a, ast.Name)}))
            hint = f"the ambient ranks ({ambient}) are left out" if ambient and len(e.args) > wanted else f"it is {shape}"
            raise self.fault(f"`{e.name}` takes {indices_}, found {len(e.args)}", e, hint)

    # -- operators with a form of their own ------------------------------------------------------------------------------

    def _binary(self, e: ast.Binary) -> Value:
        """Where the left side of ``and`` or ``or`` decides at compile time, the right one is not looked at."""
        left = self.value(e.left)
        if e.op in ("and", "or") and left.constant is (e.op == "or"):
            return left
        return apply(e.op, (left, self.value(e.right)), self.place(e))

    def _compare(self, e: ast.Compare) -> Value:
        for name, other in (e.operands[:2], e.operands[1::-1]):
            choice = self.scope.get(name.text) if isinstance(name, ast.Name) else None
            if isinstance(choice, Choice):
                return self._chosen(e, choice, other)
        values = [self.value(x) for x in e.operands]
        out: Value | None = None
        for n, op in enumerate(e.ops):
            pair = apply(op, (values[n], values[n + 1]), self.place(e))
            out = pair if out is None else apply("and", (out, pair), self.place(e))
        assert out is not None, "a comparison has an operator"
        return out

    def _chosen(self, e: ast.Compare, choice: Choice, other: ast.Expr) -> Value:
        if len(e.ops) != 1 or e.ops[0] not in ("==", "!="):
            raise self.fault(f"`{choice.name}` is a choice: it can only be compared by == or !=", e)
        if not isinstance(other, ast.Name) or other.text not in choice.members:
            members = ", ".join(choice.members)
            hint = nearest(other.text, choice.members) if isinstance(other, ast.Name) else ""
            raise self.fault(f"`{choice.name}` is one of {members}", other, hint)
        return constant((choice.value == other.text) == (e.ops[0] == "=="))

    def _conditional(self, e: ast.Conditional) -> Value:
        """A choice known at compile time looks only at the side it takes."""
        condition = self.value(e.condition)
        if condition.dtype == "bool" and condition.constant is not None:
            return self.value(e.then if condition.constant else e.other)
        return apply("select", (condition, self.value(e.then), self.value(e.other)), self.place(e))

    # -- calls -----------------------------------------------------------------------------------------------------------

    def _call(self, e: ast.Call) -> Value:
        name = e.name.text
        if e.ranks is not None and name in REDUCERS:
            return Reducer(self).value(e)
        if e.slot is not None:
            raise self.fault(f"`{name}` makes no slots", e.slot, "only topk[w -> n](x) does")
        if e.where is not None:
            raise self.fault(
                f"a `where` stands inside a reducer; `{name}` is none",
                e.where,
                f"reducers: {', '.join(REDUCERS)}; or give what is in here a name: `t = ... where ...`, then `{name}(t)`",
            )
        found = self.definitions.find(name)
        if found is not None:
            return self.inliner.call(found, e)
        if name in self.scope:
            raise self.fault(f"`{name}` is not a function", e.name, f"read it with square brackets: {name}[...]")
        if e.ranks is not None:
            if name in FUNCTIONS:
                raise self.fault(f"the function `{name}` takes no ranks", e, f"write {name}(x)")
            raise self._unknown(e.name, "the definition", [*self.definitions, *REDUCERS])
        if name in SPECIAL:
            return Special(self).value(e)
        if name in REDUCERS and name not in FUNCTIONS:
            raise self.fault(f"the reducer `{name}` needs ranks", e, f"write {name}[j](x) with the rank to reduce over")
        if not name.isidentifier() or name not in FUNCTIONS:
            known = [n for n in FUNCTIONS if n.isidentifier()]
            raise self._unknown(e.name, "the function", [*known, *self.definitions, *REDUCERS])
        return self._function(e)

    def _function(self, e: ast.Call) -> Value:
        name, args = e.name.text, tuple(self.value(a) for a in e.args)
        if name in ("max", "min") and len(args) > 1:
            out = args[0]
            for a in args[1:]:
                out = apply(name, (out, a), self.place(e))
            return out
        if name in ("max", "min") and len(args) == 1:
            raise self.fault(
                f"`{name}` of one value needs a rank", e, f"write {name}[j](x) to reduce over j, or {name}(a, b) for two values"
            )
        return apply(name, args, self.place(e))

    def rank(self, e: ast.Expr) -> str:
        """The rank that ``e`` names. Raises SpecError where it is not a bare rank."""
        binding = self.scope.get(e.text) if isinstance(e, ast.Name) else None
        if isinstance(binding, Value) and binding.expr.op == "index":
            return binding.expr.name
        if isinstance(e, ast.Name) and binding is None:
            raise self._unknown(
                e, "the rank", [n for n, b in self.scope.items() if isinstance(b, Value) and b.expr.op == "index"]
            )
        what = f"`{e}` is not a rank" if isinstance(e, ast.Name) else "this is not a rank"
        raise self.fault(what, e, "a rank is declared by a line such as `rank j: key`")
