"""Whatever README, docs and examples tell a reader to run is run by a test, or refused here: nothing is left over.

Blocks of code belong to the test that executes them all. Commands are collected from blocks and from running text; each is checked against
what it names (the parser, the Makefile, a module), and has to be run, perhaps at smaller sizes, by a test that names it.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from einfuse.cli import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "library" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\S*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

EXECUTED = {
    ("README.md", "python"): "test_readme.py::test_python_blocks_run_in_order",
    ("README.md", "console"): "test_readme.py::test_console_blocks_print_what_they_say",
    ("docs/language.md", "attn"): "dsl/test_language_doc.py::test_examples_elaborate",
    ("docs/language.md", "attn-error"): "dsl/test_language_doc.py::test_errors_read_as_shown",
    ("docs/language.md", "text"): "dsl/test_language_doc.py::test_errors_read_as_shown",
    ("docs/language.md", "python"): "dsl/test_language_doc.py::test_the_python_example_runs",
    ("docs/masks.md", "python"): "test_masks_doc.py::test_the_examples_run",
    ("docs/linear.md", "python"): "runtime/test_forms.py::test_the_documented_example_runs",
    ("docs/linear.md", "attn"): "runtime/test_forms.py::test_the_documented_spec_is_what_it_says",
    ("docs/serving.md", "python"): "serving/test_doc.py::test_the_examples_run",
    ("docs/serving.md", "attn"): "serving/test_doc.py::test_the_specs_are_read_from_a_cache",
    ("docs/editor.md", "lua"): "editor/test_doc.py::test_settings_start_the_server",
    ("docs/editor.md", "toml"): "editor/test_doc.py::test_settings_start_the_server",
    ("docs/editor.md", "json"): "editor/test_doc.py::test_tasks_are_commands_that_there_are",
    ("docs/editor.md", "ipython"): "editor/test_doc.py::test_the_cells_run",
    ("docs/distributed.md", "python"): "distributed/test_processes.py::test_the_page_runs",
    ("docs/porting.md", "python"): "test_porting.py::test_the_examples_run",
    **{
        ("docs/tutorial.md", kind): "test_tutorial.py::test_the_tutorial_can_be_followed"
        for kind in ("attn", "console", "python")
    },
    ("docs/walkthrough.md", "console"): "test_walkthrough.py::test_a_command_prints_what_the_walkthrough_shows",
    ("docs/flex.md", "python"): "flex/test_doc.py::test_the_examples",
    ("docs/layers.md", "python"): "test_client_docs.py::test_examples_run",
    ("docs/testing.md", "python"): "test_client_docs.py::test_examples_run",
    ("docs/integrations.md", "python"): "test_client_docs.py::test_examples_run",
}
"""The test that runs every block of a page and language. Blocks of commands elsewhere are collected as commands."""

TO_READ = {("docs/linear.md", ""), ("docs/masks.md", "")}
"""Fragments of specs, that cannot run by themselves."""

VALUES = {
    "SPEC": "causal", "SPEC...": "causal gqa", "NAME": "causal", "FILE": "a.attn", "FILE...": "a.attn b.attn", "QUERY": "alibi",
    "B,H,Nq,Nk": "1,2,64,64", "PASS": "online_fuse", "PATH": "a.attn", "URL": "https://example.org",
}  # fmt: skip


def page(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks() -> list[tuple[str, str, str]]:
    return [(page(p), m[1], m[2]) for p in PAGES for m in FENCE.finditer(p.read_text(encoding="utf-8"))]


def commands() -> list[tuple[str, str]]:
    """Every command with where it stands: lines `$ ...` of blocks, code in running text, and the docstrings of what can be run."""
    prose = {page(p): FENCE.sub("", p.read_text(encoding="utf-8")) for p in PAGES}
    for file in sorted([*ROOT.glob("examples/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("library/*.py")]):
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        prose[page(file)] = re.sub(r"^ {4}(\S.*?)(?:  .*)?$", r"`\1`", doc, flags=re.MULTILINE)
    found = [(w, m) for w, kind, text in blocks() if kind == "console" for m in re.findall(r"^\$ (.*)", text, re.MULTILINE)]
    found += [(where, m) for where, text in prose.items() for m in re.findall(r"`([^`\n]+)`", text)]
    plain = [(where, re.sub(r"\s+[#>].*", "", c).strip().replace("\\|", "|")) for where, c in found]
    starts = ("einfuse ", "python ", "make ", "pip ", "pytest ")
    return list(dict.fromkeys((where, c) for where, c in plain if c.startswith(starts)))


@functools.cache
def words() -> frozenset[str]:
    """Every string in the tests."""
    trees = (ast.parse(p.read_text(encoding="utf-8")) for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__))
    return frozenset(n.value for t in trees for n in ast.walk(t) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def test_every_block_has_a_test_that_runs_it() -> None:
    for where, kind, text in blocks():
        if (where, kind) in TO_READ or (kind == "console" and (where, kind) not in EXECUTED):
            continue
        assert (where, kind) in EXECUTED, f"nothing runs this block of {where}:\n{text}"
    for file, _, name in (test.partition("::") for test in EXECUTED.values()):
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, f"tests/{file} has no {name}"


@pytest.mark.parametrize(("where", "command"), commands())
def test_every_command_is_accepted_and_run_by_a_test(where: str, command: str) -> None:
    alternatives = command.replace("[", "").replace("]", "") if command.startswith("einfuse") else command
    program, *argv = shlex.split(alternatives)
    match program:
        case "einfuse":
            spoken = einfuse_command(argv)
        case "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            spoken = []
            assert [t for t in argv if "=" not in t and not re.search(rf"^{t}:", makefile, re.MULTILINE)] == []
        case "python" if argv[0] == "-m":
            assert importlib.util.find_spec(argv[1]) is not None
            source = (ROOT / argv[1].removeprefix("einfuse.").replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
            assert 'if __name__ == "__main__":' in source
            folder = "library/models/" if ".models." in argv[1] else ""
            spoken = [] if folder else [f"test_{argv[1].split('.')[-1]}"]
        case "python" if argv[0] == "-c":
            assert (where, "console") in EXECUTED
            spoken = []
        case "python":
            spoken = options(ROOT / argv[0], argv[1:])
        case "pytest":
            source = (ROOT / "tests/conftest.py").read_text(encoding="utf-8")
            named = [o for o in argv if not (ROOT / o).is_file()]
            known = [o.replace("--hypothesis-profile=", "register_profile ").split()[-1] for o in named]
            assert [o for o in known if f'addoption("{o}"' not in source and f'register_profile("{o}"' not in source] == []
            spoken = []
        case _:
            assert (program, argv[0]) == ("pip", "install")
            spoken = []
    files = {p.stem for p in (ROOT / "tests").rglob("test_*.py")}
    assert [s for s in spoken if s not in words() and s not in files] == [], f"{where}: no test runs `{command}`"


def einfuse_command(argv: list[str]) -> list[str]:
    """The command and its options, which tests must use; the parser must accept every way that ` | ` leaves open."""
    if len(argv) == 1 and argv[0] not in ("list", "doctor", "demo"):
        argv = [*argv, "--help"]  # a command named, not a line to run
    wholes: list[list[str]] = [[]]
    for n, word in enumerate(argv):
        if word == "|" or (n and argv[n - 1] == "|"):
            continue  # `SPEC... | --all`: below
        choices = word.split("|")
        wholes = [[*w, *VALUES.get(c, c).split()] for w in wholes for c in choices]
    for n, word in enumerate(argv):
        if word == "|":
            wholes.append([*argv[: n - 1], *argv[n + 1 :]])
    for whole in wholes:
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
            try:
                parser().parse_args(whole)
            except SystemExit as error:
                if not error.code:
                    continue
                raise AssertionError(f"einfuse {' '.join(whole)}: {said.getvalue()}") from error
    return [argv[0], *(w for w in argv if w.startswith("--") and w != "--help")]


def options(script: Path, argv: list[str]) -> list[str]:
    """The script says in its help, or in that of its command, what the command line uses."""
    assert script.is_file()
    said = helped(script)
    if argv and re.search(rf"[{{,]{re.escape(argv[0])}[,}}]", said):
        said += helped(script, argv[0])
    used = {w.strip("[]") for w in argv if w.strip("[]").startswith("--")}
    assert [o for o in used if o not in said] == []
    return []


def helped(script: Path, *command: str) -> str:
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", [str(script), *command, "--help"])
        patch.setattr(sys, "path", [str(script.parent), *sys.path])
        with pytest.raises(SystemExit, match="0"):
            runpy.run_path(str(script), run_name="__main__")
    return said.getvalue()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_every_example_is_run(path: Path) -> None:
    sources = [(ROOT / "tests" / n).read_text(encoding="utf-8") for n in ("test_examples.py", "test_client_examples.py")]
    processes = (ROOT / "tests" / "distributed" / "test_processes.py").read_text(encoding="utf-8")
    assert any(f'example("{path.stem}")' in text for text in sources) or f'"examples" / "{path.name}"' in processes


def test_what_nobody_runs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="invalid choice"):
        einfuse_command(["verfy", "SPEC"])
    monkeypatch.setattr(sys.modules[__name__], "words", lambda: frozenset({"bench"}))
    with pytest.raises(AssertionError, match="no test runs `einfuse bench --repeats 3`"):
        test_every_command_is_accepted_and_run_by_a_test("x", "einfuse bench --repeats 3")
