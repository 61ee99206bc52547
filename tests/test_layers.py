"""A folder imports only from the folders below it, and only as `einfuse.<folder>`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("codegen", "dsl", "ir", "library", "runtime")
ON_TENSORS = ("evaluate", "interpreter", "meaning", "merging", "ranking", "rounding")
MAY_IMPORT: dict[str, set[str]] = {
    "ir": set(),
    "dsl": {"ir"},
    "codegen": {"ir"},
    "runtime": {"codegen", "dsl", "ir"},
    "library": set(),  # only the public face: `import einfuse`
}
PAGES = {
    "library/modes.py": {"ir", "runtime"},
    "library/recording.py": {"ir", "runtime"},
    "library/formulas.py": {"ir"},
    "library/gallery.py": {"codegen", "runtime"},
}
"""Writers of pages about what passes and the runtime take and refuse."""


def imported(path: Path) -> set[str]:
    """The folders of the package that a file imports from, wherever in the file it does."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [node.module or ""]
            names += [f"einfuse.{alias.name}" for alias in node.names if node.module == "einfuse"]
    return {name.split(".")[1] for name in names if name.startswith("einfuse.")} & set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_down(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder}
    files = {str(p.relative_to(ROOT)): p for p in (ROOT / folder).rglob("*.py")}
    wrong = {name: found for name, p in files.items() if (found := imported(p) - allowed - PAGES.get(name, set()))}
    assert wrong == {}


def test_an_upward_import_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("from einfuse import runtime\n\ndef f():\n    import einfuse.codegen.plan\n")
    assert imported(file) == {"runtime", "codegen"}


@pytest.mark.parametrize("folder", ["ir", "dsl"])
def test_the_front_knows_no_kernel_language(folder: str) -> None:
    """`dsl` and `ir` run without Triton; only the interpreter and what is made for it know torch."""
    for path in (ROOT / folder).rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert "triton" not in names, path
        assert "torch" not in names or (folder == "ir" and path.stem in ON_TENSORS), path


PLAIN = {
    **dict.fromkeys(("relu", "sigmoid", "softcap", "tanh", "topk"), "functions and reducers of the language"),
    **dict.fromkeys(("additive", "distance", "linear"), "kinds of a score, a form in time linear in the tokens"),
    **dict.fromkeys(("causal", "chunked"), "pairs j <= i, a scan in blocks"),
    **dict.fromkeys(("edges", "graph", "path", "stack", "tree"), "graphs of launches and drawings, files, torch.stack"),
    **dict.fromkeys(("cross", "delta", "prefix", "slot", "uniform"), "another machine, statements, states of keys, registers"),
    **dict.fromkeys(("cosine", "differential", "polynomial", "power", "ratio", "statistics"), "functions and their calculus"),
    **dict.fromkeys(
        ("bias", "fast", "fixed", "full", "grid", "hard", "local", "padding", "shaped", "squeeze", "strided"), "plain words"
    ),
}
"""Specs whose names are words for something else, which the compiler may use: what it means by them."""


def mechanisms_named(path: Path, names: frozenset[str]) -> set[str]:
    """The mechanisms that the code of a file names: as a string, or within the name of a function, a class or a variable."""
    if path.suffix != ".py":
        return set(re.findall(r"[a-z0-9_]+", path.read_text())) & names
    nodes = list(ast.walk(ast.parse(path.read_text())))
    words = {str(n.value) for n in nodes if isinstance(n, ast.Constant)}
    for kind, name in (
        (ast.Name, "id"),
        (ast.Attribute, "attr"),
        (ast.FunctionDef, "name"),
        (ast.ClassDef, "name"),
        (ast.arg, "arg"),
    ):
        for node in (n for n in nodes if isinstance(n, kind)):
            word = getattr(node, name).lower()
            words |= {word, *word.split("_")}
    return words & names


@pytest.mark.parametrize("folder", ["dsl", "ir", "codegen", "runtime"])
def test_the_compiler_names_no_mechanism(folder: str) -> None:
    """A variant is a text in library/: nothing below knows of it. The masks of `dsl/masks.py` are a library too, written in Python."""
    every = {p.stem for p in (ROOT / "library" / "specs").rglob("*.attn")}
    assert every >= PLAIN.keys()
    names = frozenset(every - PLAIN.keys())
    kinds = (".py", ".j2", ".h", ".hpp", ".cpp", ".lark")
    files = {str(p.relative_to(ROOT)): p for p in (ROOT / folder).rglob("*") if p.suffix in kinds and p.name != "masks.py"}
    assert {name: found for name, p in files.items() if (found := mechanisms_named(p, names))} == {}


def test_a_mechanism_in_the_compiler_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text('def fuse_swin(c):\n    """Nothing about gla."""\n    return c.name == "rope" or c.is_gat  # moba\n')
    assert mechanisms_named(file, frozenset({"swin", "rope", "gat", "moba", "gla"})) == {"swin", "rope", "gat"}
    template = tmp_path / "bad.j2"
    template.write_text("{% if alibi %}")
    assert mechanisms_named(template, frozenset({"alibi"})) == {"alibi"}
