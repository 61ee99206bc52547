"""From what a user writes to a compiled attention."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from einfuse.ir import Scalar, SpecError, read_spec
from einfuse.runtime.attention import Attention
from einfuse.runtime.backends import BackendName
from einfuse.runtime.forms import FormName
from einfuse.runtime.source import Source

SPECS = Path(__file__).resolve().parents[1] / "library" / "specs"


@dataclass(frozen=True, slots=True)
class SpecInfo:
    """One spec of the library; ``paper`` is the first line of its docstring, ``text`` the whole file."""

    name: str
    family: str
    path: str
    paper: str
    text: str

    def about(self, query: str) -> bool:
        """Does the query stand in the name, the family, the paper or a formula? Blanks and case do not matter."""
        where = "|".join((self.name, self.family, self.text))
        return "".join(query.lower().split()) in "".join(where.lower().split())


def compile(
    source: str | Path,
    *,
    backend: BackendName | None = None,
    strict: bool = False,
    form: FormName = "auto",
    **params: Scalar | str,
) -> Attention:
    """Compiles an attention.

    ``source`` is the name of a library spec (see `list_specs`), the path of an ``.attn`` file, or the text of a spec. ``params`` set the
    spec's parameters: compile-time ones are folded away, numbers become the new defaults. ``backend`` is chosen by device unless named;
    ``strict`` refuses one-pass forms whose correction is sampled and not proven. ``form`` is ``quadratic``, ``linear`` (SpecError where the
    weights do not factor) or chosen at every call by its shapes. Raises SpecError with line, column and hint.
    """
    text, file, folder = _found(source)
    spec = Source(text, file, str(folder or ""), tuple(sorted(params.items())))
    optional = spec.optional()
    try:
        return Attention(spec.cascade(frozenset()), backend, strict, spec if optional else None, optional, form=form)
    except SpecError as error:  # of a pass, which sees no text
        raise error.within(text, file) from None


def attention(
    score_mod: Callable[..., object] | None = None,
    mask_mod: Callable[..., object] | None = None,
    normalizer: str = "softmax",
    *,
    scale: float | None = None,
    backend: BackendName | None = None,
    strict: bool = False,
) -> Attention:
    """An attention from traced Python functions: a score mod, a mask mod (composed with ``&``, ``|``, ``~``) and a normaliser by name.

    The functions are called once with symbols (never parsed). Their keyword-only arguments become inputs of the attention: tensors where
    they are indexed, numbers where they have a default. Raises SpecError where a function does what symbols cannot.
    """
    from einfuse import dsl

    return Attention(dsl.attention(score_mod=score_mod, mask_mod=mask_mod, normalizer=normalizer, scale=scale), backend, strict)


def _found(source: str | Path) -> tuple[str, str, Path | None]:
    """Text, file name and folder of what was asked for."""
    if isinstance(source, str) and ("{" in source or "\n" in source):
        return source, "<text>", None
    path = Path(source)
    if path.suffix == ".attn":
        if not path.is_file():
            raise SpecError(
                f"there is no file {path}",
                hint="give the path of an .attn file, the name of a library spec, or the text of a spec",
            )
        return read_spec(path), str(path), path.parent
    found = _spec(str(source))
    if found is None:
        import difflib

        specs = library()
        near = difflib.get_close_matches(str(source), specs, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SpecError(f"the library has no spec {source}", hint=f"{hint}`einfuse list` shows them all")
    return read_spec(found), found.name, found.parent


def _spec(name: str) -> Path | None:
    """The library's spec of that name. Reads no other: a process starts with this."""
    return next((p for p in SPECS.rglob("*.attn") if p.stem == name and _defines(p)), None)


def _defines(path: Path) -> bool:
    return bool(re.search(r"^attention\b", path.read_text(encoding="utf-8"), re.MULTILINE))


def library() -> dict[str, Path]:
    """The library's specs by name. A file that defines no attention (a module of definitions) is not one."""
    paths = sorted(SPECS.rglob("*.attn"))
    return {p.stem: p for p in paths if _defines(p)}


def list_specs() -> list[SpecInfo]:
    """Everything `compile` knows by name."""
    from einfuse import dsl

    out = []
    for name, path in library().items():
        text = read_spec(path)
        lines = dsl.signature(dsl.parse(text, path.name)).doc.strip().splitlines()
        where = str(path.relative_to(SPECS.parent.parent))
        out.append(SpecInfo(name, path.parent.name, where, lines[0] if lines else "", text))
    return out
