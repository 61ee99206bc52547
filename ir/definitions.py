"""Statements written into the expressions that read them: the one place where an expression grows by what its reads stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from einfuse.ir import expr as ex
from einfuse.ir.nodes import Einsum, Expr


class Definitions:
    """The values of statements without a reducer, each in terms of what is none of them.

        n = j - i                                  s[i, n] + 2 * n
        m = 2 * n                    ->            s[i, j - i] + 2 * (j - i)

    ``allowed`` sees every statement before it is written out, and raises where that may not be.
    """

    def __init__(self, statements: Iterable[Einsum] = (), allowed: Callable[[Einsum], None] = lambda x: None) -> None:
        self._sources = {x.target: x for x in statements}
        self._allowed = allowed
        self._made: dict[str, Einsum] = {}

    def add(self, x: Einsum) -> None:
        """One more statement, for expressions that come later."""
        self._sources[x.target] = x

    def into(self, e: Expr) -> Expr:
        """``e`` with its reads of the statements written out, at any depth. Raises TooLargeError where that is too large."""
        for name in self._needed(e):
            source = self._sources[name]
            self._allowed(source)
            self._made[name] = replace(source, map=self._once(source.map))
        return self._once(e)

    def _needed(self, e: Expr) -> list[str]:
        """What has to be written out before ``e``, what others need first; not recursive, for chains may be long."""
        order: list[str] = []
        listed: set[str] = set()
        stack = [(name, False) for name in sorted(ex.reads(e))]
        while stack:
            name, ready = stack.pop()
            if name not in self._sources or name in self._made or name in listed:
                continue
            if ready:
                order.append(name)
                listed.add(name)
            else:
                stack.append((name, True))
                stack += [(n, False) for n in sorted(ex.reads(self._sources[name].map))]
        return order

    def _once(self, e: Expr) -> Expr:
        def definition(x: Expr) -> Expr | None:
            source = self._made.get(x.name) if x.op == "load" else None
            if source is None:
                return None if ex.holds(x, "load", self._made) else x
            at = tuple(self._once(a) for a in x.args)
            return ex.rename(source.map, dict(zip(source.ranks, at, strict=True)))

        return ex.substitute(e, definition)
