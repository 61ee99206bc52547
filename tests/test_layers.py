"""A folder imports only from the folders below it, and only as `einfuse.<folder>`."""

from __future__ import annotations

import ast
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
PAGES = {"library/modes.py": {"ir", "runtime"}}
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
