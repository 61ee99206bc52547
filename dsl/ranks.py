"""The ranks of an attention: declared by lines, or by ``over``, with their default sizes."""

from __future__ import annotations

from collections.abc import Collection

from einfuse.dsl import ast
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.params import Params
from einfuse.dsl.values import Value
from einfuse.ir import RANK_KINDS, Expr, Rank, SpecError
from einfuse.ir.expr import call, const, size, sizes

OPERATORS = ("+", "-", "*", "//", "%")
"""What sizes may be made of sizes with."""
FIRST = {"query": "Nq", "key": "Nk"}
"""The sizes of the first rank of a kind; those of others are their names in upper case."""


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
    first = dict(FIRST)
    for line in lines:
        kind = line.kind.text
        if kind not in RANK_KINDS:
            hint = nearest(kind, RANK_KINDS) or f"kinds: {', '.join(RANK_KINDS)}"
            raise SpecError(f"`{kind}` is not a kind of rank", line.kind.loc, hint)
        for name in line.names:
            default = first.pop(kind, name.text.upper())
            size, extent = (default, None) if line.size is None else _size(line.size, params, default)
            alone = kind not in ("head", "batch") or name.text in seen
            out.append(
                Rank(name.text, kind if alone else "feature", size, name.loc, extent)
            )  # heads that are mixed are held whole
    for r in out:
        if r.size == r.name:
            raise SpecError(f"the rank `{r.name}` and its size have the same name", r.loc, "name the size: rank X: key = N")
    return tuple(out)


def _size(e: ast.Expr, params: Params, default: str) -> tuple[int | str, Expr | None]:
    """The size of a rank: a number, or a name; and what tells it, where it is made of other sizes."""
    made = _made(e, params)
    if made.op == "size":
        return made.name, None
    if made.op != "const":
        return default, made
    assert isinstance(made.value, int), "sizes are made of integers"
    if made.value <= 0:
        raise SpecError(f"the size of a rank is positive, found {made.value}", e.loc)
    return made.value, None


def _made(e: ast.Expr, params: Params) -> Expr:
    """A literal, a parameter known at compile time, the name of a size, or what arithmetic makes of these."""
    if isinstance(e, ast.Binary) and e.op in OPERATORS:
        return call(e.op, _made(e.left, params), _made(e.right, params))
    value = params.bindings.get(e.text) if isinstance(e, ast.Name) else None
    if isinstance(e, ast.Name) and value is None and "." not in e.text:
        return size(e.text)
    number = e.value if isinstance(e, ast.Number) else value.constant if isinstance(value, Value) else None
    if not isinstance(number, int) or isinstance(number, bool):
        raise SpecError("the size of a rank is made of sizes, integers, + - * // and %", e.loc, "write rank j: key = N")
    return const(number)


def check_told(ranks: tuple[Rank, ...], told: Collection[str]) -> None:
    """Raises SpecError where a size is made of one that neither a rank before it nor an axis tells."""
    known = {*told} | {r.size for r in ranks if isinstance(r.size, str) and r.extent is None}
    for r in ranks:
        for name in sorted(sizes(r.extent) - known):
            near = nearest(name, known - {r.size}) or "it is made of sizes of ranks and axes"
            raise SpecError(f"nothing tells `{name}`, of which the size of the rank `{r.name}` is made", r.loc, near)
        known |= {r.size} if isinstance(r.size, str) else set()
