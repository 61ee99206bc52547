"""What is shipped: an sdist, the wheel made of it, and the command run from that wheel alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TAKEN = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "src", "codegen", "dsl", "ir", "library", "runtime")
PAGE = ("index.html", "page.js", "wheels/some.whl")
"""What stands for the built playground, which `make wheel` puts into the package."""
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def built(kind: str, source: Path, out: Path) -> Path:
    run = subprocess.run([sys.executable, "-c", BUILD, kind, str(out)], cwd=source, check=True, capture_output=True, text=True)
    return out / run.stdout.split("\n")[-2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of the unpacked sdist: what that lacks, the wheel lacks."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("out")
    for name in TAKEN:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(path, tree / name)
    for name in PAGE:
        (tree / "src" / "einfuse" / "_page" / name).parent.mkdir(exist_ok=True)
        (tree / "src" / "einfuse" / "_page" / name).write_text(f"this is {name}")
    sdist = built("build_sdist", tree, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(tree / "unpacked", **({"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}))  # type: ignore[arg-type]  # Python 3.11.4 and later
    (source,) = (tree / "unpacked").iterdir()
    return built("build_wheel", source, out)


@pytest.mark.slow
def test_a_wheel_holds_one_package_and_all_its_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {n.split("/")[0] for n in names} == {"einfuse", f"einfuse-{version()}.dist-info"}
    tracked = [p for f in ("codegen", "dsl", "ir", "library", "runtime") for p in (ROOT / f).rglob("*")]
    wanted = {
        f"einfuse/{p.relative_to(ROOT).as_posix()}"
        for p in tracked
        if p.suffix in (".py", ".attn", ".lark", ".j2", ".h", ".cpp")
    }
    wanted |= {"einfuse/py.typed", "einfuse/_editor/server.py", "einfuse/_cli/templates/spec.attn.j2"}
    assert wanted <= names
    assert not [n for n in names if "/tests/" in n or n.endswith(".pyc")]


@pytest.mark.slow
def test_the_command_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        entries = archive.read(f"einfuse-{version()}.dist-info/entry_points.txt").decode()
    assert "einfuse = einfuse.cli:main" in entries
    assert "attn = einfuse._editor.lexer:AttnLexer" in entries
    code = "import sys; sys.path.insert(0, sys.argv[1]); import einfuse; assert einfuse.__file__.startswith(sys.argv[1]); "
    code += "from einfuse.cli import main; sys.exit(main(sys.argv[2:]))"
    site, spec = (
        str(tmp_path / "site"),
        str(tmp_path / "site" / "einfuse" / "library" / "specs" / "position" / "alibi_window.attn"),
    )
    serve = "import urllib.request; from einfuse._cli.playground import built, server; import threading; s = server(built(None), 0); "
    serve += "threading.Thread(target=s.serve_forever, daemon=True).start(); "
    serve += "print(urllib.request.urlopen(f'http://localhost:{s.server_address[1]}/wheels/some.whl').read().decode())"
    run = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {site!r}); {serve}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert run.stdout == "this is wheels/some.whl\n"
    for argv, said in ((["check", spec], "1 file good"), (["--version"], f"einfuse {version()}")):
        run = subprocess.run(
            [sys.executable, "-I", "-c", code, site, *argv], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        assert run.stdout.strip() == said


def version() -> str:
    found: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    return found


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", text, re.MULTILINE) == [version()]
    assert re.findall(r"^(cff-version|message|title|authors):", text, re.MULTILINE) == [
        "cff-version",
        "title",
        "message",
        "authors",
    ]
