"""Builds the playground: ``python playground/build.py dist/playground`` (`make playground`), after ``npm ci`` in this folder.

The page needs no network once it is built. Python for browsers and the editor come from npm; the packages of Python are the pure ones of
this environment, those that the tests ran with, and einfuse is this checkout's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import files
from pathlib import Path

from einfuse._editor.colours import rules
from einfuse._editor.page import library

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CORE = ("pyodide.mjs", "pyodide.asm.mjs", "python_stdlib.zip")
FRONT = ("lark", "jinja2", "markupsafe", "platformdirs")
"""Packages that a text is read and printed with. (The C part of markupsafe has a twin in Python.)"""
ALGEBRA = ("sympy", "mpmath")
"""Packages that proofs are made with: they are loaded when one is asked for that is not kept."""
UNREAD = {
    "einfuse": ("_cli", "distributed", "flex", "integrations", "serving", "library/layers", "library/models"),
    "sympy": ("categories", "crypto", "diffgeom", "holonomic", "liealgebras", "physics", "stats", "testing"),
    "": ("tests", "benchmarks"),
}
"""Folders that nothing on the page imports, by package; those of "" in any."""
KEPT = (".py", ".attn", ".lark", ".j2", ".h", ".cpp", ".json")
MODULES = ("codegen", "dsl", "ir", "library", "runtime")


def build(out: Path) -> None:
    """Makes the folder of the page anew."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "pyodide").mkdir(parents=True)
    made = HERE / "build"
    made.mkdir(exist_ok=True)
    (made / "colours.json").write_text(json.dumps([asdict(r) for r in rules()]), encoding="utf-8")
    _bundle(out)
    (out / "library.json").write_text(json.dumps(library()), encoding="utf-8")  # to pick from, before Python runs
    shutil.copyfile(HERE / "page.css", out / "page.css")
    for name in CORE:
        shutil.copyfile(HERE / "node_modules" / "pyodide" / name, out / "pyodide" / name)
    wasm = (HERE / "node_modules" / "pyodide" / "pyodide.asm.wasm").read_bytes()
    (out / "pyodide" / "pyodide.asm.wasm.gz").write_bytes(gzip.compress(wasm, mtime=0))
    _empty_lock(out / "pyodide")
    _packed(made / "python.zip", [*_checkout(), *_stand_in(), *_installed(FRONT)])
    _packed(made / "sympy.zip", _installed(ALGEBRA))
    subprocess.run(["node", "pack.mjs", *(made / n for n in ("python.zip", "sympy.zip")), out], cwd=HERE, check=True)
    shutil.copyfile(HERE / "index.html", out / "index.html")  # last: a page that has it is whole
    size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
    print(f"{out}: {size / 1e6:.1f} MB")


def _bundle(out: Path) -> None:
    esbuild = HERE / "node_modules" / ".bin" / "esbuild"
    options = ["--bundle", "--minify", "--format=esm", "--target=es2022", "--external:./pyodide/pyodide.mjs"]
    subprocess.run([esbuild, "page.js", "worker.js", *options, f"--outdir={out}", "--log-level=warning"], cwd=HERE, check=True)


def _empty_lock(folder: Path) -> None:
    """The list of packages that the page may load, which is empty: those of Pyodide lie elsewhere."""
    lock = json.loads((HERE / "node_modules" / "pyodide" / "pyodide-lock.json").read_text(encoding="utf-8"))
    (folder / "pyodide-lock.json").write_text(json.dumps({**lock, "packages": {}}), encoding="utf-8")


Files = Iterator[tuple[str, Path]]


def _checkout() -> Files:
    for path in sorted((ROOT / "src" / "einfuse").rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield f"einfuse/{path.relative_to(ROOT / 'src' / 'einfuse').as_posix()}", path
    for folder in MODULES:
        for path in sorted((ROOT / folder).rglob("*")):
            yield f"einfuse/{path.relative_to(ROOT).as_posix()}", path


def _stand_in() -> Files:
    folder = HERE / "python"
    yield from ((p.relative_to(folder).as_posix(), p) for p in sorted(folder.rglob("*.py")))


def _installed(packages: tuple[str, ...]) -> Files:
    for package in packages:
        yield from ((str(f), Path(str(f.locate()))) for f in files(package) or ())


def _packed(archive: Path, members: list[tuple[str, Path]] | Files) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for name, path in dict(members).items():
            if path.suffix in KEPT and not _unread(name) and ".dist-info" not in name and ".." not in name:
                out.write(path, name)


def _unread(name: str) -> bool:
    package = name.partition("/")[0]
    own = (f"{package}/{f}/" for f in UNREAD.get(package, ()))
    return any(name.startswith(f) for f in own) or any(f"/{f}/" in name for f in UNREAD[""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    build(parser.parse_args().out.resolve())
