"""The five folders are importable only as `einfuse.*`, and travel with the package."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("codegen", "dsl", "ir", "library", "runtime")
DATA = (".attn", ".lark", ".j2", ".h", ".cpp")


def test_no_folder_leaks_to_the_top_level(tmp_path: Path) -> None:
    code = f"from importlib.util import find_spec; print([n for n in {FOLDERS} if find_spec(n)])"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_loaded_once_as_part_of_the_package(name: str) -> None:
    assert name not in sys.modules
    spec = importlib.util.find_spec(f"einfuse.{name}")
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / name / "__init__.py"


@pytest.mark.parametrize("name", FOLDERS)
def test_the_package_reaches_a_folder_by_a_relative_link(name: str) -> None:
    link = ROOT / "src" / "einfuse" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{name}"


def test_every_kind_of_data_file_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    found = {p.suffix for name in FOLDERS for p in (ROOT / name).rglob("*") if p.suffix in DATA}
    assert {f"*{suffix}" for suffix in found} <= set(settings)


def test_every_folder_of_python_files_is_a_package() -> None:
    bare = [p.parent for name in FOLDERS for p in (ROOT / name).rglob("*.py") if not (p.parent / "__init__.py").exists()]
    assert bare == []


def test_no_test_folder_is_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_a_bare_name_means_one_module_to_every_test() -> None:
    """All folders of helpers are on the path (tests/conftest.py): of two modules with one name, the first would be imported."""
    files = [p for p in (ROOT / "tests").rglob("*.py") if p.stem != "conftest"]
    names = Counter(p.stem for p in files)
    helpers = {p.stem for p in files if not p.stem.startswith("test_")}
    assert {n for n in helpers if names[n] > 1 or n in sys.stdlib_module_names} == set()
    imported = [
        (str(p.relative_to(ROOT)), name)
        for p in files
        for node in ast.walk(ast.parse(p.read_text()))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)])
    ]
    assert [x for x in imported if x[1] in names and x[1] not in helpers] == [], (
        "a test module is no helper: move what they share"
    )


def test_the_map_of_the_tests_has_every_folder() -> None:
    """And its links lead somewhere; every file begins with what it holds."""
    tests = ROOT / "tests"
    text = (tests / "README.md").read_text()
    rows = re.findall(r"^\| \[.*?\]\((.*?)\) \|", text, re.MULTILINE)
    files = sorted(tests.rglob("test_*.py"))
    assert sorted(rows) == sorted({str(p.parent.relative_to(tests)) for p in files})
    assert [x for x in re.findall(r"\]\((.*?)\)", text) if not (tests / x).exists()] == []
    assert [str(p) for p in files if not re.match(r'"""\S.{20,}', p.read_text())] == []


LONG = {"src/einfuse/flex/functions.py": 450}
"""Files that are longer than they should be, and how long they may be: no more than today, rounded up."""


def test_no_file_is_longer_than_400_lines() -> None:
    files = [p for name in (*FOLDERS, "src/einfuse") for p in (ROOT / name).rglob("*.py")]
    lines = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in files}
    assert {n: x for n, x in lines.items() if x > LONG.get(n, 400)} == {}
    assert all(lines[n] > 400 for n in LONG), "it is short enough: take it off the list"


def test_no_code_asks_for_the_name_of_a_back_end() -> None:
    """What differs between back ends is said by them (`runtime/backends.py`), not found out by those who use them."""
    asked = re.compile(r"""backend(\.name)? (==|!=|in|not in) ["'({\[]|isinstance\([\w.]+, \w*Backend\)""")
    assert asked.search('if backend == "cpu":')
    files = [p for name in ("codegen", "dsl", "ir", "runtime") for p in (ROOT / name).rglob("*.py")]
    found = [f"{p.relative_to(ROOT)}: {x}" for p in files for x in p.read_text().splitlines() if asked.search(x)]
    assert found == []


def modules(root: Path) -> dict[str, Path]:
    """The modules of the package at ``root`` by name, through the links to its folders."""
    files = [
        Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names if name.endswith(".py")
    ]
    parts = {p: p.relative_to(root.parent).with_suffix("").parts for p in files}
    return {".".join(n[:-1] if n[-1] == "__init__" else n): p for p, n in parts.items()}


def imports(tree: ast.AST) -> Iterator[str]:
    """What is imported anywhere in a file, functions included, but for the types of a type checker."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{a.name}" for a in node.names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from imports(node)


def cycle_of_packages(files: dict[str, Path]) -> list[str]:
    """Packages that import one another in a circle; empty where there is none.

    An ``__init__`` stands for itself (what it hands on is not what the package is made of), and so does a module at the root.
    """
    root = next(iter(files)).partition(".")[0]
    inside = {m: m if p.name == "__init__.py" or m.count(".") == 1 else f"{m.rpartition('.')[0]}.*" for m, p in files.items()}
    graph: dict[str, set[str]] = {package: set() for package in inside.values()}
    for module, path in files.items():
        for name in imports(ast.parse(path.read_text())):
            while name not in files and "." in name:
                name = name.rpartition(".")[0]
            other, own = inside.get(name), inside[module]
            if other not in (None, own, root, own.removesuffix(".*")):
                graph[own].add(other)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_packages_import_one_another() -> None:
    assert cycle_of_packages(modules(ROOT / "src" / "einfuse")) == []


def test_a_circle_of_packages_is_seen(tmp_path: Path) -> None:
    for name, text in {
        "a/__init__.py": "",
        "a/x.py": "def f():\n    from top.a.b.z import g\n",
        "a/b/__init__.py": "",
        "a/b/z.py": "from top.a import y\n",
        "a/y.py": "",
    }.items():
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / name).write_text(text)
    assert set(cycle_of_packages(modules(tmp_path / "top"))) == {"top.a.*", "top.a.b.*"}
    (tmp_path / "top/a/x.py").write_text("if TYPE_CHECKING:\n    from top.a.b.z import g\n")
    assert cycle_of_packages(modules(tmp_path / "top")) == []
