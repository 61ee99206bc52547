"""Loop bounds as expressions, simplified under what is known of the tile of a program: ``0 <= i.lo < i.hi <= size(i)``.

With ``i.lo`` a multiple of the tile's block, ``max(0, i.lo) // 64 * 64`` is ``i.lo`` where 64 divides the block. Everything
here preserves values; what cannot be proven stays as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from einfuse.ir import expr as ex
from einfuse.ir.affine import Affine, affine, floor_divide, number, simplified
from einfuse.ir.nodes import Expr


@dataclass(frozen=True, slots=True)
class Known:
    """The tile rank (if any), its block, and its size as an expression."""

    rank: str | None = None
    block: int = 1
    size: Expr = ex.ONE

    @property
    def lo(self) -> Expr:
        return Expr("size", (), f"{self.rank}.lo")

    @property
    def hi(self) -> Expr:
        return Expr("size", (), f"{self.rank}.hi")

    def at_least_zero(self, form: Affine) -> bool:
        """Is the form provably >= 0? Exact in the tile's own three numbers, by the vertex and the rays of their polyhedron."""
        weight = dict(form.terms)
        low, high = weight.pop(self.lo, 0), weight.pop(self.hi, 0)
        length = weight.pop(self.size, 0) if self.size.op == "size" and (low or high) else 0
        if any(c < 0 or not self.nonnegative(a) for a, c in weight.items()):
            return False
        if not low and not high:
            return form.const >= 0
        if self.size.op == "size":  # from (lo, hi, size) = (0, 1, 1) along (0, 0, 1), (0, 1, 1) and (1, 1, 1)
            return length >= 0 and high + length >= 0 and low + high + length >= 0 and high + length + form.const >= 0
        assert isinstance(self.size.value, int), "the size of a rank is a number or a name"
        n = self.size.value
        return all(low * a + high * b + form.const >= 0 for a, b in ((0, 1), (0, n), (n - 1, n)))

    def nonnegative(self, e: Expr) -> bool:
        """Is this atom provably >= 0?"""
        if e.op in ("size", "index"):
            return True
        if e.op == "%":
            return self.at_least(e.args[1], ex.ONE)
        if e.op in ("//", "*", "min"):
            return all(self.at_least(a, ex.ZERO) for a in e.args)
        return e.op == "max" and any(self.at_least(a, ex.ZERO) for a in e.args)

    def at_least(self, a: Expr, b: Expr, form: Callable[[Expr], Affine] = affine) -> bool:
        """Is ``a >= b`` provable? ``form`` makes normal forms."""
        if a.op == "min":
            return all(self.at_least(x, b, form) for x in a.args)
        if b.op == "max":
            return all(self.at_least(a, x, form) for x in b.args)
        if a.op == "select":
            return all(self.at_least(x, b, form) for x in a.args[1:])
        if b.op == "select":
            return all(self.at_least(a, x, form) for x in b.args[1:])
        if self.at_least_zero(form(a) - form(b)):
            return True
        if a.op == "max":
            return any(self.at_least(x, b, form) for x in a.args)
        return b.op == "min" and any(self.at_least(a, x, form) for x in b.args)

    def maximum(self, *operands: Expr) -> Expr:
        form = _once()
        return self._extreme("max", operands, lambda a, b: self.at_least(a, b, form))

    def minimum(self, *operands: Expr) -> Expr:
        form = _once()
        return self._extreme("min", operands, lambda a, b: self.at_least(b, a, form))

    def _extreme(self, op: str, operands: Iterable[Expr], beats: Callable[[Expr, Expr], bool]) -> Expr:
        flat = list(dict.fromkeys(x for e in operands for x in _flattened(op, e)))
        kept: list[Expr] = []
        for n, x in enumerate(flat):
            if not any(beats(y, x) for y in (*kept, *flat[n + 1 :])):
                kept.append(x)
        out = kept[0]
        for x in kept[1:]:
            out = ex.call(op, out, x)
        return out

    def aligned(self, e: Expr, step: int, up: bool = False) -> Expr:
        """``e`` rounded down (or up) to a multiple of ``step``: monotone, so it goes to the operands of min and max."""
        if step <= 1:
            return e
        if e.op in ("min", "max"):
            parts = [self.aligned(a, step, up) for a in e.args]
            return self.minimum(*parts) if e.op == "min" else self.maximum(*parts)
        if e.op == "select":
            return ex.call("select", e.args[0], self.aligned(e.args[1], step, up), self.aligned(e.args[2], step, up))
        form = affine(e).shifted(step - 1 if up else 0)
        whole = Affine(tuple(t for t in form.terms if self._multiple(*t, step)))
        return (whole + floor_divide(form - whole, number(step)).scaled(step)).expr

    def _multiple(self, atom: Expr, coefficient: int, step: int) -> bool:
        return coefficient * (self.block if atom == self.lo else 1) % step == 0


def _once() -> Callable[[Expr], Affine]:
    """`affine`, made once for every expression, which the caller holds: known by identity, for 1 and 1.0 are equal."""
    made: dict[int, Affine] = {}

    def form(e: Expr) -> Affine:
        found = made.get(id(e))
        if found is None:
            found = made[id(e)] = affine(e)
        return found

    return form


def _flattened(op: str, e: Expr) -> list[Expr]:
    if e.op == op:
        return [x for a in e.args for x in _flattened(op, a)]
    return [e if e.op in ("min", "max", "select") else simplified(e)]
