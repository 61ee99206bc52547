"""Scalar expressions: leaves, walks, and rules that hold for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import replace

from einfuse.ir.functions import FALSE as FALSE
from einfuse.ir.functions import FUNCTIONS
from einfuse.ir.functions import ONE as ONE
from einfuse.ir.functions import TRUE as TRUE
from einfuse.ir.functions import ZERO as ZERO
from einfuse.ir.functions import call as call
from einfuse.ir.functions import const as const
from einfuse.ir.functions import is_const as is_const
from einfuse.ir.nodes import DType, Expr

NUMERIC: tuple[DType, ...] = ("int", "float")
LEAVES = ("const", "index", "size", "load", "new")


def index(rank: str) -> Expr:
    return Expr("index", (), rank)


def size(name: int | str) -> Expr:
    return const(name) if isinstance(name, int) else Expr("size", (), name)


def load(name: str, *args: Expr) -> Expr:
    return Expr("load", args, name)


def at(name: str, ranks: tuple[str, ...]) -> Expr:
    """The statement ``name`` read at its own coordinates."""
    return load(name, *map(index, ranks))


def conjunction(*parts: Expr | None) -> Expr | None:
    """The ``and`` of the given predicates, each once; None (no condition) when there is none."""
    result: Expr | None = None
    for part in dict.fromkeys(p for p in parts if p is not None and not is_const(p, True)):
        result = part if result is None else call("and", result, part)
    return result


def conjuncts(e: Expr | None) -> tuple[Expr, ...]:
    """The operands of nested ``and``."""
    return () if e is None else _chained("and", e)


def disjuncts(e: Expr) -> tuple[Expr, ...]:
    """The operands of nested ``or``."""
    return _chained("or", e)


def factors(e: Expr) -> tuple[Expr, ...]:
    """The operands of nested ``*``."""
    return factors(e.args[0]) + factors(e.args[1]) if e.op == "*" else (e,)


def quotient(e: Expr) -> tuple[list[Expr], list[Expr]]:
    """``e`` as the factors of a numerator and of a denominator."""
    if e.op in ("*", "/"):
        (a, b), (c, d) = quotient(e.args[0]), quotient(e.args[1])
        return (a + c, b + d) if e.op == "*" else (a + d, b + c)
    if e.op == "neg":
        a, b = quotient(e.args[0])
        return [const(-1), *a], b
    return [e], []


def collected(a: Expr, b: Expr) -> Expr:
    """``a + b`` with the factors and divisors that both share taken out: ``p * x / (l * m) + y * p / m`` is ``p * (x / l + y) / m``."""
    (over_a, under_a), (over_b, under_b) = quotient(a), quotient(b)
    over, under = _shared(over_a, over_b), _shared(under_a, under_b)
    if not over and not under:
        return call("+", a, b)
    return fraction([*over, call("+", fraction(over_a, under_a), fraction(over_b, under_b))], under)


def _shared(a: list[Expr], b: list[Expr]) -> list[Expr]:
    """What both lists hold, taken out of both; numbers stay."""
    shared = []
    for f in list(a):
        if f in b and f.op != "const":
            shared.append(f)
            a.remove(f)
            b.remove(f)
    return shared


def fraction(over: list[Expr], under: list[Expr]) -> Expr:
    """The inverse of `quotient`."""
    return call("/", product(*over), product(*under)) if under else product(*over)


def product(*parts: Expr) -> Expr:
    result: Expr = ONE
    for part in parts:
        result = call("*", result, part)
    return result


def walk(e: Expr) -> Iterator[Expr]:
    """Every sub-expression, the root first; one that stands in several places once for each."""
    stack = [e]
    while stack:
        top = stack.pop()
        yield top
        stack += reversed(top.args)


def holders(e: Expr, x: Expr) -> frozenset[int]:
    """The ids of the parts of ``e`` that are ``x`` or hold it; each part is looked at once."""
    found: dict[int, bool] = {}
    stack = [e]
    while stack:
        top = stack[-1]
        left = [] if top == x else [a for a in top.args if id(a) not in found]
        if left:
            stack += left
        else:
            found[id(stack.pop())] = top == x or any(found[id(a)] for a in top.args)
    return frozenset(n for n, holds in found.items() if holds)


def guarded(e: Expr, guard: tuple[Expr, ...] = ()) -> Iterator[tuple[Expr, tuple[Expr, ...]]]:
    """Every load in ``e``, with conditions without which its value plays no part in that of ``e``.

    ``b`` in ``a and b`` counts where ``a`` holds, in ``a or b`` where it does not, a branch of a select where it is taken. What comes
    first guards what follows; what follows guards what comes first as far as it loads nothing itself, so no two loads excuse each other.
    """
    if e.op in ("and", "or"):
        parts = _chained(e.op, e)
        sides = parts if e.op == "and" else tuple(call("not", p) for p in parts)
        for n, part in enumerate(parts):
            later = tuple(s for s in sides[n + 1 :] if not names(s, "load"))
            yield from guarded(part, (*guard, *sides[:n], *later))
        return
    if e.op == "select":
        yield from guarded(e.args[0], guard)
        yield from guarded(e.args[1], (*guard, e.args[0]))
        yield from guarded(e.args[2], (*guard, call("not", e.args[0])))
        return
    if e.op == "load":
        yield e, guard
    for a in e.args:
        yield from guarded(a, guard)


def choices(e: Expr, x: Expr) -> tuple[Expr, ...]:
    """The conditions of selects in ``e`` that all hold wherever ``x`` is a part of its value: ``p`` for ``x`` in ``select(p, 2 * x, 0) + 1``.

    A condition itself is no part of the value. Where ``x`` stands in conditions only, or nowhere, there are none.
    """
    return tuple(_choices(e, x, holders(e, x)) or ())


def _choices(e: Expr, x: Expr, holders: frozenset[int]) -> dict[Expr, None] | None:
    if e == x:
        return {}
    if id(e) not in holders:
        return None
    if e.op == "select":
        sides = [(e.args[1], e.args[0]), (e.args[2], call("not", e.args[0]))]
        found = [{p: None, **inner} for a, p in sides if (inner := _choices(a, x, holders)) is not None]
    else:
        found = [inner for a in e.args if (inner := _choices(a, x, holders)) is not None]
    return {p: None for p in found[0] if all(p in other for other in found)} if found else None


def where(e: Expr, conditions: Collection[Expr]) -> Expr:
    """``e`` where the conditions hold: what it chooses by one of them is the first side."""

    def chosen(x: Expr) -> Expr | None:
        return substitute(x.args[1], chosen) if x.op == "select" and x.args[0] in conditions else None

    return substitute(e, chosen) if conditions else e


def _chained(op: str, e: Expr) -> tuple[Expr, ...]:
    return _chained(op, e.args[0]) + _chained(op, e.args[1]) if e.op == op else (e,)


def names(e: Expr | None, op: str) -> set[str]:
    """The names that the leaves of kind ``op`` in ``e`` refer to."""
    return set() if e is None else {name for kind, name in e.named if kind == op}


def holds(e: Expr, op: str, some: Container[str]) -> bool:
    """Whether a leaf of kind ``op`` in ``e`` refers to one of ``some``: what does not is left as it is by rules about these."""
    return any(kind == op and name in some for kind, name in e.named)


def indices(e: Expr | None) -> set[str]:
    """The ranks whose coordinates occur in ``e``."""
    return names(e, "index")


def sizes(e: Expr | None) -> set[str]:
    """The sizes that ``e`` is made of."""
    return names(e, "size")


def reads(e: Expr | None) -> set[str]:
    """The tensors and statements that ``e`` loads, or looks into."""
    return names(e, "load") | names(e, "in")


def substitute(e: Expr, fn: Callable[[Expr], Expr | None]) -> Expr:
    """``e`` with every outermost sub-expression for which ``fn`` gives a replacement replaced, constants folded again.

    A part that stands in several places is replaced once, and stays one part. Raises TooLargeError where the result is too large.
    """
    return _substituted(e, fn, {})


def _substituted(e: Expr, fn: Callable[[Expr], Expr | None], known: dict[int, Expr]) -> Expr:
    out = known.get(id(e))
    if out is not None:
        return out
    out = fn(e)
    if out is None:
        out = e
        if e.args:
            args = []
            for a in e.args:  # a loop, for every frame of Python counts on the way down
                args.append(_substituted(a, fn, known))
            if any(a is not b for a, b in zip(args, e.args, strict=True)):
                out = replace(e, args=tuple(args)) if e.op in (*LEAVES, "in") else call(e.op, *args)
                out = replace(out, loc=e.loc) if out.loc is None and e.loc is not None else out
    known[id(e)] = out
    return out


def rename(e: Expr, ranks: dict[str, Expr]) -> Expr:
    """``e`` with rank coordinates replaced."""

    def renamed(x: Expr) -> Expr | None:
        if x.op == "index":
            return ranks.get(x.name)
        return None if holds(x, "index", ranks) else x

    return substitute(e, renamed)


def scalar_type(e: Expr, lookup: Callable[[str], DType]) -> DType:
    """The type of ``e``, given the types of what it loads (the expression is already checked)."""
    if e.op == "const":
        return "bool" if isinstance(e.value, bool) else "int" if isinstance(e.value, int) else "float"
    if e.op in ("index", "size"):
        return "int"
    if e.op in ("load", "new"):
        return lookup(e.name)
    if e.op == "in":
        return "bool"
    f = FUNCTIONS[e.op]
    return f.gives([scalar_type(a, lookup) for a in f.values(e.args)])


def divisor(e: Expr) -> int:
    """A number that divides an int expression at every point; 0 of 0 itself."""
    if e.op == "const":
        return abs(int(e.value)) if isinstance(e.value, int) else 1
    if e.op == "*":
        return math.prod(map(divisor, e.args))
    if e.op in ("+", "-", "min", "max", "neg"):
        return math.gcd(*map(divisor, e.args))
    return 1


def terms(e: Expr) -> list[tuple[int, Expr]]:
    """``e`` as a signed sum of what are no sums."""
    if e.op in ("+", "-"):
        sign = 1 if e.op == "+" else -1
        return terms(e.args[0]) + [(s * sign, t) for s, t in terms(e.args[1])]
    if e.op == "neg":
        return [(-s, t) for s, t in terms(e.args[0])]
    return [(1, e)]
