"""One text and what is known of it, each thing worked out when it is first asked for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from einfuse import dsl
from einfuse._editor import names
from einfuse._editor.names import Occurrence
from einfuse.dsl import ast
from einfuse.dsl.modules import prelude
from einfuse.dsl.names import Binding, Definitions
from einfuse.ir import Cascade, SpecError


@dataclass(frozen=True)
class Document:
    """``file`` is its path, or a name in messages; ``search`` are the folders of the files that it uses."""

    text: str
    file: str = "<text>"
    search: tuple[Path, ...] = ()

    def __reduce__(self) -> tuple[object, ...]:
        """To another process goes the text alone: what is known of it takes longer to send than to find."""
        return Document, (self.text, self.file, self.search)

    @staticmethod
    def at(path: Path, text: str | None = None) -> Document:
        """The text of a file, or one that is about to become it. Raises SpecError."""
        return Document(dsl.read_spec(path) if text is None else text, str(path), (path.parent,))

    @functools.cached_property
    def module(self) -> ast.Module | None:
        """The syntax tree; None of a text that is none."""
        try:
            return dsl.parse(self.text, self.file)
        except SpecError:
            return None

    @functools.cached_property
    def names(self) -> list[Occurrence]:
        """Every name that is defined somewhere."""
        return [] if self.module is None else names.occurrences(self.module, self.search)

    @functools.cached_property
    def definitions(self) -> Definitions:
        """What calls in the text can mean."""
        return prelude() if self.module is None else names.seen(self.module, self.search)

    @functools.cached_property
    def attentions(self) -> list[Elaborated]:
        """The attentions that can be elaborated."""
        out = []
        for node in self.module.attentions if self.module is not None else ():
            optional = [x.name.text for x in node.body if isinstance(x, ast.Input) and x.optional]
            try:
                cascade, bound = dsl.elaborated(self.module, node.name.text, given=optional, search=self.search)  # type: ignore[arg-type]
            except SpecError:
                continue
            out.append(Elaborated(node, cascade, bound))
        return out


@dataclass(frozen=True)
class Elaborated:
    """An attention with all its optional inputs: its text, its cascade, and what its names mean."""

    node: ast.Attention
    cascade: Cascade
    bound: Mapping[str, Binding]
