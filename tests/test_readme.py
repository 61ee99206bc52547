"""Every ```python block of the README runs, in order; every ```console block prints what it says (`...` stands for any lines)."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from einfuse.cli import main, parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def matches(expected: str, found: str) -> bool:
    """Trailing blanks apart, equal; a line ``...`` stands for any number of lines."""
    lines = [line.rstrip() for line in expected.strip().splitlines()]
    pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(line) + r"\n" for line in lines)
    text = "".join(line.rstrip() + "\n" for line in found.strip().splitlines())
    return re.fullmatch(pattern, text) is not None


def commands() -> list[tuple[str, str]]:
    """Each ``$ command`` with the lines that follow it."""
    out = []
    for block in fenced("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, expected = part.partition("\n")
            out.append((line.split("  #")[0].strip(), expected))
    return out


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, object] = {}
    blocks = fenced("python")
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), scope)
    assert capsys.readouterr().out == "2 -> 1\n"


@pytest.mark.parametrize(("command", "expected"), commands(), ids=lambda x: x if len(x) < 40 else "")
def test_console_blocks_print_what_they_say(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *argv = shlex.split(command)
    if program == "make":
        assert re.search(rf"^{argv[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == "einfuse":
        main(argv)
        captured = capsys.readouterr()
        assert matches(expected, captured.out + captured.err), captured.out + captured.err
    else:
        assert program == "pip"  # installs: looked at by people


def test_a_difference_in_output_is_seen() -> None:
    assert matches("a\n...\nc\n", "a\nb\nb\nc\n")
    assert not matches("a\n...\nc\n", "a\nb\n")
    assert not matches("a\n", "a\nb\n")


def test_every_command_is_in_the_table() -> None:
    names = next(a.choices for a in parser()._actions if a.dest == "command")
    assert names is not None
    assert all(f"einfuse {name}" in README for name in names)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
