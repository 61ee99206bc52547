"""What a caller needs to know of an attention before anything is elaborated."""

from __future__ import annotations

from dataclasses import dataclass

from einfuse.dsl import ast
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.params import default_of, param_type
from einfuse.ir import Scalar, Span, SpecError

_FORM = "write attention name over b, h { ... }"


@dataclass(frozen=True, slots=True)
class ParamInfo:
    """``type`` is int, float, bool or enum; ``default`` None: a value is required."""

    name: str
    type: str
    default: Scalar | str | None
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InputInfo:
    name: str
    dtype: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Signature:
    name: str
    doc: str
    params: tuple[ParamInfo, ...]
    inputs: tuple[InputInfo, ...]
    outputs: tuple[str, ...]


def chosen(module: ast.Module, name: str | None) -> ast.Attention:
    """The attention of that name, or the last one. Raises SpecError where there is none."""
    if not module.attentions:
        hint = "its definitions are checked where an attention uses them" if module.definitions else _FORM
        raise SpecError("this file defines no attention", Span(module.file, 1, 1), hint)
    seen: dict[str, ast.Attention] = {}
    for a in module.attentions:
        if a.name.text in seen:
            raise SpecError(f"the attention `{a.name}` is defined twice", a.name.loc)
        seen[a.name.text] = a
    if name is None:
        return module.attentions[-1]
    if name not in seen:
        raise SpecError(
            f"this file has no attention `{name}`", Span(module.file, 1, 1), nearest(name, seen) or f"it has {', '.join(seen)}"
        )
    return seen[name]


def signature(module: ast.Module, name: str | None = None) -> Signature:
    """The parameters, inputs and outputs of an attention; its docstring, or the file's."""
    try:
        a = chosen(module, name)
        params = tuple(ParamInfo(p.name.text, param_type(p), default_of(p), tuple(map(str, p.members))) for p in a.params)
    except SpecError as error:
        raise error.within(module.source) from None
    inputs = tuple(
        InputInfo(x.name.text, x.type.text if x.type else "float", x.optional) for x in a.body if isinstance(x, ast.Input)
    )
    outputs = tuple(n.text for x in a.body if isinstance(x, ast.Output) for n in x.names)
    return Signature(a.name.text, a.doc or module.doc, params, inputs, outputs)
