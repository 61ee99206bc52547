"""Where definitions come from: the file itself, the files it uses, the prelude."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from einfuse.dsl import ast
from einfuse.dsl.names import Defined, Definitions, unknown
from einfuse.dsl.parse import parse
from einfuse.ir import FUNCTIONS, SpecError, read_spec

HERE = Path(__file__).resolve().parent
REDUCERS = ("sum", "max", "min", "prod", "mean", "any", "count", "argmax", "topk")
SPECIAL = ("given", "size", "repeat", "random")


def definitions(module: ast.Module, search: Sequence[Path] = ()) -> tuple[Definitions, dict[str, str]]:
    """Everything that calls in ``module`` can mean, and the sources of all files involved by file name."""
    loader = _Loader(tuple(search))
    return loader.scope(module, ()), loader.sources


@functools.cache
def prelude() -> Definitions:
    """The definitions every file starts with."""
    path = HERE / "prelude.attn"
    return _own(parse(read_spec(path), path.name), Definitions())


def builtin(name: str) -> bool:
    """Is ``name`` a function, reducer or special form of the language (which no definition may take)?"""
    return name in FUNCTIONS or name in REDUCERS or name in SPECIAL


def _own(module: ast.Module, scope: Definitions) -> Definitions:
    for node in module.definitions:
        if node.name.text in scope.own:
            raise SpecError(f"`{node.name}` is defined twice", node.name.loc)
        if builtin(node.name.text):
            raise SpecError(
                f"`{node.name}` is part of the language and cannot be defined again", node.name.loc, "choose another name"
            )
        scope.own[node.name.text] = Defined(node, scope)
    return scope


class _Loader:
    """Reads used modules, each once."""

    def __init__(self, search: tuple[Path, ...]) -> None:
        self.search = search
        self.sources: dict[str, str] = {}
        self.loaded: dict[str, Definitions] = {}

    def scope(self, module: ast.Module, above: tuple[str, ...]) -> Definitions:
        self.sources[module.file] = module.source
        scope = Definitions(outer=prelude())
        for use in module.uses:
            self._use(use, scope, above)
        try:
            return _own(module, scope)
        except SpecError as error:
            raise error.within(module.source) from None

    def _use(self, use: ast.Use, scope: Definitions, above: tuple[str, ...]) -> None:
        used = self._load(use, above)
        own = {n: d for n, d in used.own.items() if d.home is used}
        if use.name is None:
            scope.own |= {f"{use.module}.{n}": d for n, d in own.items()}
            return
        if use.name.text not in own:
            raise unknown(use.name, f"module {use.module} defines no such name:", own)
        if use.name.text in scope.own:
            raise SpecError(
                f"`{use.name}` is defined twice", use.name.loc, f"write `use {use.module}` and {use.module}.{use.name}"
            )
        scope.own[use.name.text] = own[use.name.text]

    def _load(self, use: ast.Use, above: tuple[str, ...]) -> Definitions:
        name = use.module.text
        if name in above:
            raise SpecError(f"the modules {' -> '.join((*above, name))} use each other in a circle", use.loc)
        if name not in self.loaded:
            path = next((p for d in (*self.search, HERE) if (p := Path(d) / f"{name}.attn").is_file()), None)
            if path is None:
                near = sorted({p.stem for d in (*self.search, HERE) for p in Path(d).glob("*.attn")})
                error = unknown(use.module, "module", near)
                error.hint = error.hint or f"modules are files {name}.attn beside the spec; einfuse brings: masks"
                raise error
            self.loaded[name] = self.scope(parse(read_spec(path), str(path)), (*above, name))
        return self.loaded[name]
