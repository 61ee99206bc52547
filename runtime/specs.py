"""The texts of specs: those of the library by name, those of files by path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from einfuse.ir.errors import SpecError
from einfuse.ir.source import read_spec

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


def found(source: str | Path) -> tuple[str, str, Path | None]:
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
    from einfuse.runtime import cache

    texts = {path: read_spec(path) for path in library().values()}
    papers = cache.remembered("papers", cache.key(*texts.values()), lambda: tuple(_paper(t, p) for p, t in texts.items()))
    return [
        SpecInfo(path.stem, path.parent.name, str(path.relative_to(SPECS.parent.parent)), paper, text)
        for (path, text), paper in zip(texts.items(), papers, strict=True)
    ]


def _paper(text: str, path: Path) -> str:
    """The first line of the docstring of a spec."""
    from einfuse import dsl

    return next(iter(dsl.signature(dsl.parse(text, path.name)).doc.strip().splitlines()), "")
