"""Which tests compare a spec with a formula written from its paper: told from their sources, by the names of specs and of layers."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
PLACES = ("library/test_*.py", "dsl/test_specs.py", "test_geometry.py", "helpers/recurrences.py")
"""Where formulas in plain torch stand."""

OTHERS = ("test_table", "test_models", "test_verified", "test_mechanisms", "test_modes", "test_recording")
"""Files beside them that compare nothing with a formula."""


def tested(specs: set[str], layers: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The test files of every spec, as paths below tests/: those that name it, or a layer that is built on it."""
    out: dict[str, set[str]] = {name: set() for name in specs}
    for place in PLACES:
        for file in sorted(TESTS.glob(place)):
            if file.stem in OTHERS:
                continue
            words, names = _named(ast.parse(file.read_text(encoding="utf-8")))
            words |= set() if file.stem.startswith("test_") else names  # a module of formulas has a function for each
            found = (words & specs).union(*(layers[n] for n in names & layers.keys()))
            for spec in found:
                out[spec].add(str(file.relative_to(TESTS)))
    return out


def _named(tree: ast.AST) -> tuple[set[str], set[str]]:
    """The first word of every string (a case may be named `swin unshifted`), and every function, class or attribute named."""
    words: set[str] = set()
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if text.split():
                words.add(text.split()[0])
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.FunctionDef(name=name):
                names.add(name)
            case _:
                pass  # other nodes name nothing
    return words, names
