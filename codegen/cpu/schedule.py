"""From straight-line block operations to loop nests: which operations share a loop, and which values need a buffer.

    before   t = qk * c ; m = max[j](t) ; p = exp(t - m) ; l = sum[j](p) ; acc' = acc + p v
    after    nest (i, j): t, m        nest (i, j): t again, p, l; p is kept for the product        product acc'

Operations with the same domain run in one nest as long as none needs what another has only at the nest's end (a reduction). A
value that a later nest reads is computed again there if that is cheap, else it is kept in a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from einfuse.codegen.plan import Coordinate, Dot, Load, Map, Op, Reduce, Store, Value, reads


@dataclass(frozen=True, slots=True)
class Single:
    """An operation on scalars."""

    op: Op


Limit = Literal["", "columns", "terms", "turned terms"]
"""What a product leaves out where a mask is false (see `alive`): columns of its result, or terms of its sum, whose left operand lies
by rows or by terms."""


@dataclass(frozen=True, slots=True)
class Nest:
    """Operations in one loop nest over ``dims``, the last of them in vectors; ``kept`` are written to buffers (or scalars).

    ``seen``: the nest notes where this truth value is alive; ``limited``: it runs only there, and ``cleared`` are 0 elsewhere.
    ``diagonal``: the last row of this rank stands for all, and what is kept has a value for every diagonal (`diagonals`).
    """

    dims: tuple[str, ...]
    ops: tuple[Op, ...]
    kept: tuple[Value, ...] = ()
    seen: Value | None = None
    limited: bool = False
    cleared: tuple[Value, ...] = ()
    diagonal: str = ""


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product."""

    op: Dot
    limit: Limit = ""


Node = Single | Nest | Product

CHEAP = frozenset("+ - * < <= > >= == != and or not neg abs max min sign select float int copy".split())


def arrange(ops: Sequence[Op], order: tuple[str, ...], apart: Callable[[Op], Hashable] = lambda _: None) -> list[Node]:
    """The operations in an order that fills loop nests: scalars first, then small domains, and products when nothing else is ready.

    Operations for which ``apart`` differs do not share a nest.
    """
    nodes: list[Node] = []
    pending, missing = list(ops), {op.out.name for op in ops if not isinstance(op, Store)}
    while pending:
        single = next((op for op in pending if not domain(op, order) and _ready(op, missing)), None)
        if single is not None:
            chosen: list[Op] = [single]
            nodes.append(Single(single))
        else:
            ready = [op for op in pending if _ready(op, missing) and not isinstance(op, Dot)]
            if ready:
                first = min(ready, key=lambda op: len(domain(op, order)))
                dims, kind = domain(first, order), apart(first)
                chosen = _together([op for op in pending if apart(op) == kind], dims, missing, order)
                nodes.append(Nest(dims, tuple(chosen)))
            else:
                chosen = [op for op in pending if _ready(op, missing)]
                nodes += [Product(op) for op in chosen if isinstance(op, Dot)]
        assert chosen, "operations stand in the order of their use"
        taken = set(map(id, chosen))
        pending = [op for op in pending if id(op) not in taken]
        missing -= {op.out.name for op in chosen if not isinstance(op, Store)}
    return nodes


def _ready(op: Op, missing: set[str]) -> bool:
    return all(v.name not in missing for v in reads(op))


def _together(pending: Sequence[Op], dims: tuple[str, ...], missing: set[str], order: tuple[str, ...]) -> list[Op]:
    """The operations over ``dims`` that can run in one nest now."""
    here: set[str] = set()
    chosen: list[Op] = []
    for op in pending:
        if isinstance(op, Dot) or domain(op, order) != dims:
            continue
        if all(v.name not in missing or v.name in here for v in reads(op)):
            chosen.append(op)
            if not isinstance(op, Store | Reduce):
                here.add(op.out.name)
    return chosen


def settle(nodes: Sequence[Node], recipes: Mapping[str, Op], wanted: set[str]) -> tuple[list[Node], set[str]]:
    """Decides what each nest computes and keeps.

    ``recipes`` are the operations that may be repeated, ``wanted`` the names read after the last node. Returns the nodes and
    every name that is read from a buffer or a scalar.
    """
    read = set(wanted)
    out: list[Node] = []
    for node in reversed(nodes):
        if isinstance(node, Nest):
            nest = _nest(node, recipes, read)
            if nest is not None:
                out.append(nest)
        elif isinstance(node.op, Store) or node.op.out.name in read:
            read |= {v.name for v in reads(node.op)}
            out.append(node)
    return out[::-1], read


def _nest(node: Nest, recipes: Mapping[str, Op], read: set[str]) -> Nest | None:
    own = {op.out.name: op for op in node.ops if not isinstance(op, Store | Reduce)}
    roots = [op for op in node.ops if isinstance(op, Store) or op.out.name in read or op.out == node.seen]
    ops: list[Op] = []
    seen: set[str] = set()
    needed: set[str] = set()

    def visit(op: Op) -> None:
        for v in reads(op):
            if v.name in own:
                if v.name not in seen:
                    seen.add(v.name)
                    visit(own[v.name])
            elif v.dims and v.name not in read and _repeated(v, node.dims, recipes):
                if v.name not in seen:
                    seen.add(v.name)
                    visit(recipes[v.name])
            elif not (v.dims and isinstance(recipes.get(v.name), Coordinate)):
                needed.add(v.name)
            elif v.name not in seen:
                seen.add(v.name)
                ops.append(recipes[v.name])
        ops.append(op)

    for root in roots:
        if isinstance(root, Store | Reduce):
            visit(root)
        elif root.out.name not in seen:
            seen.add(root.out.name)
            visit(root)
    kept = tuple(op.out for op in roots if not isinstance(op, Store | Coordinate) and op.out.name in read)
    ops = [op for op in ops if not isinstance(op, Coordinate) or op.out.dims]
    read |= needed
    needed_here = kept or node.seen or any(isinstance(op, Store) for op in ops)
    return replace(node, ops=tuple(ops), kept=kept) if needed_here else None


def _repeated(v: Value, dims: tuple[str, ...], recipes: Mapping[str, Op]) -> bool:
    """Whether computing a value again beats a buffer."""
    op = recipes.get(v.name)
    if isinstance(op, Coordinate):
        return True
    if not isinstance(op, Map) or op.fn not in CHEAP:
        return False
    return _cost(v, recipes) <= (8 if v.dtype == "bool" else 6 if v.dims == dims else 2)


def _cost(v: Value, recipes: Mapping[str, Op], depth: int = 0) -> int:
    op = recipes.get(v.name)
    if not v.dims or isinstance(op, Coordinate):
        return 0
    if not isinstance(op, Map) or op.fn not in CHEAP or depth > 8:
        return 1
    return 1 + sum(_cost(a, recipes, depth + 1) for a in op.args)


def node_reads(node: Node) -> set[str]:
    """The names a node reads from buffers and scalars."""
    if not isinstance(node, Nest):
        return {v.name for v in reads(node.op)}
    computed = {op.out.name for op in node.ops if not isinstance(op, Store | Reduce)}
    return {v.name for op in node.ops for v in reads(op)} - computed


def kept(node: Node) -> tuple[Value, ...]:
    """The values a node writes to buffers; what lies along diagonals has one of its own."""
    if isinstance(node, Nest):
        return () if node.diagonal else tuple(v for v in node.kept if v.dims)
    return (node.op.out,) if isinstance(node, Product) else ()


def paired_by(node: Node, v: Value) -> bool:
    """Whether a node may write a value as rows of pairs: it computes it vector by vector."""
    if not isinstance(node, Nest) or node.diagonal or node.dims != v.dims or len(v.dims) != 2 or v.dtype != "float":
        return False
    return any(isinstance(op, Map | Load) and op.out == v for op in node.ops)


def domain(op: Op, order: tuple[str, ...]) -> tuple[str, ...]:
    """The ranks an operation runs over: those of what it writes, and the reduced one."""
    if isinstance(op, Store):
        spanned = {d for v in (*op.index, op.value) for d in v.dims}
    elif isinstance(op, Reduce):
        spanned = set(op.arg.dims)
    else:
        spanned = set(op.out.dims)
    return tuple(r for r in order if r in spanned)
