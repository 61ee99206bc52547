"""What the points of a pair share along diagonals: computed once for every difference of the two, and not for every pair.

before   nest (i, j): at = bucket(j - i) ; bias = table[h, at] ; s = qk + bias        48 x 64 logarithms in a tile
after    diagonals (j): at, bias                      nest (i, j): s = qk + bias      48 + 64 - 1 of them

A row of the last i over a longer block of j has a point of every diagonal, so that is what is computed, and its values lie one after
the other: row i of the pair reads its own from ``rows - 1 - i`` on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from einfuse.codegen.cpu.schedule import CHEAP, Nest, Node, Single
from einfuse.codegen.plan import Const, Coordinate, Dot, Load, Map, Op, Param, Size, Store, Value, reads

ALIKE = frozenset(("==", "!=", "<", "<=", ">", ">="))
"""Of two whole numbers that change by as much from point to point of a diagonal."""


def steps(ops: Iterable[Op], pair: Collection[str], known: Mapping[str, int]) -> dict[str, int]:
    """By how much values change from a point of a diagonal to the next, of those for which that is one number.

    ``known`` are those of values from before.
    """
    found = dict(known)
    for op in ops:
        if not isinstance(op, Store) and (step := _step(op, pair, found)) is not None:
            found[op.out.name] = step
    return found


def _step(op: Op, pair: Collection[str], known: Mapping[str, int]) -> int | None:
    of = [known.get(v.name) for v in reads(op)]
    args = [n for n in of if n is not None]
    if len(args) < len(of):
        return None
    match op:
        case Const() | Size() | Param():
            return 0
        case Coordinate(out=out, rank=rank):
            return 1 if rank in pair else None if out.dims else 0
        case Map(out=out, fn="+" | "-" as fn) if out.dtype == "int":
            return args[0] + args[1] if fn == "+" else args[0] - args[1]
        case Map(fn=fn, args=(a, b)) if fn in ALIKE and a.dtype == b.dtype == "int" and args[0] == args[1]:
            return 0
        case Map() | Load() if not any(args):
            return 0
    return None


def along(ops: Sequence[Op], inside: Mapping[str, Op], pair: tuple[str, str], known: Mapping[str, int]) -> Nest | None:
    """The nest that makes values of ``inside`` that are one along diagonals, those which ``ops`` read and which take longer to make than
    to read; None where there are none. ``known`` are the `steps` of values, ``inside`` all operations of the body by name."""
    same = {n for n, op in inside.items() if known.get(n) == 0 and _value(op).dims == pair and _value(op).dtype != "bool"}
    products = {v.name for op in ops if isinstance(op, Dot) for v in reads(op)}
    read = {v.name for op in ops if isinstance(op, Store) or op.out.name not in same for v in reads(op)} - products
    made: dict[str, Op] = {}
    long: set[str] = set()

    def visit(op: Op) -> None:
        name = _value(op).name
        if name in made:
            return
        below = [v.name for v in reads(op) if v.dims and v.name in inside]
        for n in below:
            visit(inside[n])
        made[name] = op
        if isinstance(op, Load) or (isinstance(op, Map) and op.fn not in CHEAP) or not long.isdisjoint(below):
            long.add(name)

    for name in inside:
        if name in same & read:
            visit(inside[name])
    roots = tuple(_value(op) for n, op in made.items() if n in same & read & long)
    return Nest(pair[1:], tuple(made.values()), roots, diagonal=pair[0]) if roots else None


def _value(op: Op) -> Value:
    assert not isinstance(op, Store), "stores give no value"
    return op.out


def placed(nodes: Sequence[Node], nest: Nest) -> list[Node]:
    """The nodes with this nest behind the numbers that come first."""
    first = next((n for n, x in enumerate(nodes) if not isinstance(x, Single)), len(nodes))
    return [*nodes[:first], nest, *nodes[first:]]
