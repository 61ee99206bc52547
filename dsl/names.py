"""What a name can mean, and where it is looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from einfuse.dsl import ast
from einfuse.dsl.diagnostics import nearest
from einfuse.dsl.values import Value
from einfuse.ir import DType, Expr, SpecError


@dataclass(frozen=True, slots=True)
class Held:
    """A statement of the cascade, or an integer statement that is filled in where it is read (``inline``).

    ``along``: the rank of the scan that a state is carried along, while inside it; a reader of the state varies with it too.
    """

    name: str
    ranks: tuple[str, ...]
    dtype: DType
    space: tuple[Expr, ...] = ()
    inline: Value | None = None
    along: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """An input; ``access`` gives its default coordinates, None on an axis that has none."""

    name: str
    dtype: DType
    access: tuple[Value | None, ...]
    axes: tuple[str, ...]  # as written, for messages
    optional: bool = False
    given: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """A parameter of an enum type, known at compile time."""

    name: str
    members: tuple[str, ...]
    value: str


Binding = Value | Held | Source | Choice


@dataclass(frozen=True, slots=True)
class Defined:
    """A definition and the names its body can use."""

    node: ast.Definition
    home: Definitions


@dataclass(slots=True)
class Definitions:
    """The definitions that a file sees: its own, those it uses (under ``module.name`` or ``name``), then the prelude's."""

    own: dict[str, Defined] = field(default_factory=dict)
    outer: Definitions | None = None

    def find(self, name: str) -> Defined | None:
        found = self.own.get(name)
        return found if found is not None or self.outer is None else self.outer.find(name)

    def __iter__(self) -> Iterator[str]:
        yield from self.own
        if self.outer is not None:
            yield from self.outer


def unknown(name: ast.Name, what: str, known: Mapping[str, object] | list[str]) -> SpecError:
    """The error for a name that means nothing, with the nearest one that does."""
    return SpecError(f"{what} `{name}` is not known here", name.loc, nearest(name.text, known))
