"""The ranks of an attention: declared by lines, or by ``over``, with their default sizes."""

from __future__ import annotations

from einfuse.dsl import ast
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.params import Params
from einfuse.dsl.values import Value
from einfuse.ir import RANK_KINDS, Rank, SpecError

_FIRST = {"query": "Nq", "key": "Nk"}


def declared(node: ast.Attention, params: Params) -> tuple[Rank, ...]:
    """Ambient ranks that no line declares, then those of the lines, in order."""
    lines = [x for x in node.body if isinstance(x, ast.RankLine)]
    listed = {n.text for x in lines for n in x.names}
    seen: set[str] = set()
    out: list[Rank] = []
    for name in node.over:
        if name.text in seen:
            raise SpecError(f"the rank `{name}` stands twice in `over`", name.loc)
        seen.add(name.text)
        if name.text not in listed:
            out.append(Rank(name.text, "head" if name.text.startswith("h") else "batch", name.text.upper(), name.loc))
    first = dict(_FIRST)
    for line in lines:
        kind = line.kind.text
        if kind not in RANK_KINDS:
            hint = nearest(kind, RANK_KINDS) or f"kinds: {', '.join(RANK_KINDS)}"
            raise SpecError(f"`{kind}` is not a kind of rank", line.kind.loc, hint)
        for name in line.names:
            default = first.pop(kind, name.text.upper())
            size = default if line.size is None else _size(line.size, params)
            alone = kind not in ("head", "batch") or name.text in seen
            out.append(Rank(name.text, kind if alone else "feature", size, name.loc))  # heads that are mixed are held whole
    for r in out:
        if r.size == r.name:
            raise SpecError(f"the rank `{r.name}` and its size have the same name", r.loc, "name the size: rank X: key = N")
    return tuple(out)


def _size(e: ast.Expr, params: Params) -> int | str:
    """A literal, a parameter known at compile time, or the name of a size."""
    if isinstance(e, ast.Name):
        value = params.bindings.get(e.text)
        if value is None:
            return e.text
        number = value.constant if isinstance(value, Value) else None
    else:
        number = e.value if isinstance(e, ast.Number) else None
    if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
        raise SpecError("the size of a rank is a positive integer or a name", e.loc, "write rank j: key = N")
    return number
