"""Forms that look like calls and are none: ``given(name)``, ``size(j)``, ``random(seed, ...)``, ``repeat(n, t = start, next)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from einfuse.dsl import ast
from einfuse.dsl.names import Binding, Source
from einfuse.dsl.values import Value, apply, constant, extent

if TYPE_CHECKING:
    from einfuse.dsl.evaluate import Evaluator

MAX_REPEAT = 64
"""Every step may be a pass over the keys, and a loop of the kernel."""


class Special:
    """Evaluates the forms that are met ``at`` an evaluator."""

    def __init__(self, at: Evaluator) -> None:
        self.at = at

    def value(self, e: ast.Call) -> Value:
        name = e.name.text
        if name == "given":
            return self._given(e)
        if name == "size":
            return self._size(e)
        if name == "random":
            return self._random(e)
        raise self.at.fault("`repeat` starts from a named value", e, "write repeat(n, t = start, next)")

    def _given(self, e: ast.Call) -> Value:
        name = e.args[0] if len(e.args) == 1 else None
        source = self.at.scope.get(name.text) if isinstance(name, ast.Name) else None
        if not isinstance(source, Source) or not source.optional:
            optional = sorted(n for n, b in self.at.scope.items() if isinstance(b, Source) and b.optional)
            hint = f"optional inputs: {', '.join(optional)}" if optional else "declare one: in bias[i, j] optional"
            raise self.at.fault("`given` takes the name of an optional input", e, hint)
        return constant(source.given)

    def _random(self, e: ast.Call) -> Value:
        """A number from 0 to 1 (24 bits) that depends on its integer operands alone."""
        counters = [self.at.value(a) for a in e.args]
        if len(counters) < 2 or any(c.dtype != "int" for c in counters):
            raise self.at.fault(
                "`random` takes a seed and at least one counter, all integers", e, "write random(seed, b, h, i, j)"
            )
        bits, *rest = counters
        for c in rest:
            bits = apply("hash", (bits, c), self.at.place(e))
        top = apply("//", (bits, constant(1 << 7)), self.at.place(e))
        return apply("*", (apply("float", (top,), self.at.place(e)), constant(2.0**-24)), self.at.place(e))

    def _size(self, e: ast.Call) -> Value:
        if len(e.args) != 1:
            raise self.at.fault("`size` takes one rank", e, "write size(j)")
        return extent(self.at.frame.extents[self.at.rank(e.args[0])])

    def repeat(self, e: ast.Repeat) -> Value:
        """Unrolled: what every name holds after each step is a statement, unless it is a leaf."""
        count = self.at.value(e.count).constant
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= MAX_REPEAT:
            hint = f"a number from 0 to {MAX_REPEAT}, or an int parameter of the attention"
            raise self.at.fault("the count of a `repeat` is an integer known at compile time", e.count, hint)
        outside = {n.text: self.at.scope.get(n.text) for n in e.names}
        values: list[Binding] = [self.at.inliner.argument(n.text, x) for n, x in zip(e.names, e.starts, strict=True)]
        for _ in range(count):
            self.at.scope.update(zip(outside, values, strict=True))
            values = [self.at.inliner.argument(n.text, x) for n, x in zip(e.names, e.steps, strict=True)]
        for name, binding in outside.items():
            self.at.scope.pop(name, None)
            if binding is not None:
                self.at.scope[name] = binding
        return self.at.bound(values[0], e.names[0])
