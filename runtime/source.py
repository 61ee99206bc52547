"""What an attention is compiled from, as data: pickled with it, so that its optional inputs can be given in another process."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from einfuse.ir import Cascade, Scalar
from einfuse.runtime import cache

if TYPE_CHECKING:
    from einfuse import dsl  # imported where a text is read: a process that finds its kernels on disk reads none
    from einfuse.runtime.attention import Attention
    from einfuse.runtime.backends import BackendName
    from einfuse.runtime.forms import FormName

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """The text of a spec and the parameters it is compiled with: the cascade for every set of optional inputs that a call gives.

    ``folder`` is where the modules are that the text uses; empty: nowhere.
    """

    text: str
    file: str
    folder: str
    params: tuple[tuple[str, Scalar | str], ...]

    def cascade(self, given: frozenset[str]) -> Cascade:
        """The cascade with these optional inputs. Raises SpecError."""

        def make() -> Cascade:
            from einfuse import dsl

            search = (Path(self.folder),) if self.folder else ()
            return dsl.elaborate(_module(self.text, self.file), params=dict(self.params), given=set(given), search=search)

        return _kept("cascade", make, self.text, self.file, list(self.params), sorted(given))

    def optional(self) -> frozenset[str]:
        """The names of the optional inputs. Raises SpecError."""

        def find() -> frozenset[str]:
            from einfuse import dsl

            return frozenset(i.name for i in dsl.signature(_module(self.text, self.file)).inputs if i.optional)

        return _kept("optional", find, self.text, self.file)


def elaborated(attention: Attention, name: str, given: tuple[str, ...]) -> bool:
    """Leaves the variant with these optional inputs at the attention, under a name. torch.compile calls this, and does not trace it."""
    assert attention.origin is not None, "only a spec with optional inputs has variants"
    setattr(attention, name, _variant(attention.origin, frozenset(given), attention.backend, attention.strict, attention.form))
    return True


vars(elaborated)["_dynamo_marked_constant"] = True  # as `torch.compiler.assume_constant_result`, which imports the compiler


@functools.lru_cache(256)
def _variant(source: Source, given: frozenset[str], backend: BackendName | None, strict: bool, form: FormName) -> Attention:
    from einfuse.runtime.apart import apart
    from einfuse.runtime.attention import Attention

    return apart(lambda: Attention(source.cascade(given), backend, strict, form=form))


@functools.lru_cache(8)
def _module(text: str, file: str) -> dsl.Module:
    from einfuse import dsl

    return dsl.parse(text, file)


def _kept(kind: str, make: Callable[[], T], text: str, *more: object) -> T:
    """What follows from a spec's text: from disk where it is known. A text that uses other files is read each time, with them."""
    if re.search(r"^\s*use\b", text, re.MULTILINE):
        return make()
    return cache.remembered("spec", cache.key(kind, text, *map(repr, more)), make)
