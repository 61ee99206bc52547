"""Text to syntax tree. Every fault of syntax is a `SpecError` with its place and what was expected."""

from __future__ import annotations

from einfuse.dsl import ast
from einfuse.ir import SpecError


def parse(text: str, file: str = "<text>") -> ast.Module:
    """The syntax tree of ``text``. Raises SpecError where it is not ``.attn``; names are not looked up yet."""
    from einfuse.dsl.syntax import parsed  # with the grammar's library, which takes longer to import than all the rest

    try:
        return parsed(text, file)
    except SpecError as error:
        raise error.within(text) from None
