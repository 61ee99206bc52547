"""The parameters of an attention: which are known at compile time, which are numbers of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from einfuse.dsl import ast
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.names import Choice, Defined, Definitions
from einfuse.dsl.values import Value, constant, read
from einfuse.ir import DType, Scalar, SpecError, Tensor

TYPES = ("int", "float", "bool", "enum")


@dataclass(frozen=True, slots=True)
class Params:
    """``bindings`` says what each name means; ``tensors`` are the numbers that a call can give."""

    bindings: dict[str, Value | Choice]
    tensors: tuple[Tensor, ...]


def parameters(node: ast.Attention, values: Mapping[str, Scalar | str], found: Definitions) -> Params:
    """Checks the header against the given ``values``. Raises SpecError for one that is unknown, missing or of another type."""
    known = [p.name.text for p in node.params]
    for name in values:
        if name not in known:
            hint = nearest(name, known) or (f"it takes {', '.join(known)}" if known else "it takes none")
            raise SpecError(f"{node.name} has no parameter `{name}`", node.name.loc, hint)
    structural = _structural(node, found)
    bindings: dict[str, Value | Choice] = {}
    tensors: list[Tensor] = []
    for p in node.params:
        kind, name = param_type(p), p.name.text
        value = values.get(name)
        value = default_of(p) if value is None else _checked(p, value)
        if kind in ("int", "float") and name not in structural:
            dtype: DType = "int" if kind == "int" else "float"
            bindings[name] = read(name, dtype, (), plain=True)
            tensors.append(Tensor(name, (), dtype, True, value, p.name.loc))  # type: ignore[arg-type]  # an enum has a str only
            continue
        if value is None:
            raise SpecError(
                f"the parameter `{name}` needs a value", p.name.loc, f"compile with {name}=..., or give it a default here"
            )
        if isinstance(value, str):
            bindings[name] = Choice(name, tuple(map(str, p.members)), value)
        else:
            bindings[name] = constant(value)
    return Params(bindings, tuple(tensors))


def param_type(p: ast.Param) -> str:
    """One of `TYPES`."""
    kind = p.type.text
    if kind not in TYPES:
        raise SpecError(
            f"`{kind}` is not a type of parameter", p.type.loc, nearest(kind, TYPES) or f"types: {', '.join(TYPES)}"
        )
    if (kind == "enum") != bool(p.members):
        hint = f"write {p.name}: enum(first, second)"
        raise SpecError("an enum lists its members" if kind == "enum" else f"`{kind}` takes no list", p.type.loc, hint)
    return kind


def default_of(p: ast.Param) -> Scalar | str | None:
    """The default in the header."""
    e = p.default
    if e is None:
        return None
    negative = isinstance(e, ast.Unary) and e.op == "neg"
    literal = e.operand if isinstance(e, ast.Unary) and negative else e
    if isinstance(literal, ast.Number):
        return _checked(p, -literal.value if negative else literal.value)
    if isinstance(literal, ast.Truth) and not negative:
        return _checked(p, literal.value)
    if isinstance(literal, ast.Name) and not negative:
        return _checked(p, literal.text)
    raise SpecError(
        f"the default of `{p.name}` is not a constant", e.loc, "write a number, true, false or a member of the enum"
    )


def _checked(p: ast.Param, value: Scalar | str) -> Scalar | str:
    """``value`` in the type of the parameter."""
    kind, loc = param_type(p), (p.default.loc if p.default is not None else None) or p.name.loc
    if kind == "enum":
        members = tuple(map(str, p.members))
        if value not in members:
            raise SpecError(f"`{p.name}` is one of {', '.join(members)}, found {value}", loc, nearest(str(value), members))
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (kind == "bool" and isinstance(value, bool)) or (kind == "int" and isinstance(value, int) and number):
        return value
    if kind == "float" and number:
        return float(value)
    raise SpecError(f"`{p.name}` is of type {kind}, found {str(value).lower() if isinstance(value, bool) else value}", loc)


def _counts(node: ast.Node, found: Definitions, known: dict[int, set[str]]) -> list[ast.Expr]:
    """The expressions in ``node`` that count a `repeat`, here or in a definition that is called."""
    out: list[ast.Expr] = []
    for n, _ in ast.walk(node):
        if isinstance(n, ast.Repeat):
            out.append(n.count)
        called = found.find(n.name.text) if isinstance(n, ast.Call) else None
        if called is not None and isinstance(n, ast.Call):
            names = _counting(called, known)
            out += [a for p, a in zip(called.node.params, n.args, strict=False) if p.text in names]
    return out


def _counting(called: Defined, known: dict[int, set[str]]) -> set[str]:
    """The parameters of a definition that count a `repeat`; each definition is looked at once."""
    if id(called.node) not in known:
        known[id(called.node)] = set()  # should it call itself: an error of its own, later
        counts = [c for y in (*called.node.body, called.node.result) for c in _counts(y, called.home, known)]
        known[id(called.node)] = {x.text for c in counts for x, _ in ast.walk(c) if isinstance(x, ast.Name)}
    return known[id(called.node)]


def _structural(node: ast.Attention, found: Definitions) -> set[str]:
    """Parameters that shape the code: those in the size of a rank or an axis, and in the count of a `repeat`."""
    roots: list[ast.Expr] = []
    known: dict[int, set[str]] = {}
    for x in node.body:
        if isinstance(x, ast.RankLine) and x.size is not None:
            roots.append(x.size)
        if isinstance(x, ast.Input):
            roots += x.axes
        roots += _counts(x, found, known)
    names = {n.text for root in roots for n, _ in ast.walk(root) if isinstance(n, ast.Name)}
    return names & {p.name.text for p in node.params}
