"""Is an integer expression of two coordinates a function of their difference alone?"""

from __future__ import annotations

from einfuse.ir import expr as ex
from einfuse.ir.affine import affine
from einfuse.ir.nodes import Expr

_AFFINE = ("+", "-", "*", "neg", "index")
_COMPARED = ("<", "<=", ">", ">=", "==", "!=")


def of_difference(e: Expr, i: str, j: str) -> bool:
    """Does ``e`` keep its value when ``i`` and ``j`` move together? (Decided by form: False means that it was not seen.)

    ``abs(j - i) + 4``, ``min(j - i, 8)``, ``16 if j > i else 0`` and a read at such an index do; ``j // 2 - i // 2`` does not.
    """
    if not ex.indices(e) & {i, j}:
        return True
    if e.op in _AFFINE and _integral(e):
        form = affine(e)
        moved = sum(c for atom, c in form.terms if atom in (ex.index(i), ex.index(j)))
        rest = [atom for atom, _ in form.terms if atom not in (ex.index(i), ex.index(j))]
        return moved == 0 and all(of_difference(a, i, j) for atom in rest for a in (atom.args if atom.op == "*" else (atom,)))
    if e.op in _COMPARED and all(map(_integral, e.args)):
        return of_difference(ex.call("-", *e.args), i, j)
    return e.op != "index" and all(of_difference(a, i, j) for a in e.args)


def _integral(e: Expr) -> bool:
    """Made of integers throughout, as far as `ir.affine` looks into it."""
    if e.op == "const":
        return isinstance(e.value, int) and not isinstance(e.value, bool)
    if e.op in ("+", "-", "*", "neg", "abs", "min", "max", "//", "%"):
        return all(map(_integral, e.args))
    return e.op in ("index", "size", "int", "floor")
