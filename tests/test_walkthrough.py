"""docs/walkthrough.md shows what its commands print; a line ``...`` stands for any lines."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from einfuse.cli import main

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "walkthrough.md").read_text()
BLOCKS = [block.partition("\n")[::2] for block in re.findall(r"^```console\n\$ (.*?)^```", DOC, re.DOTALL | re.MULTILINE)]


def printed(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    name, *words = shlex.split(command)
    if name == "cat":
        return (ROOT / words[0]).read_text().splitlines()
    if name == "python":
        exec(words[1], {})
    else:
        assert main(words) == 0
    return [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]


def missing(expected: list[str], found: list[str]) -> str | None:
    """The first line that does not stand where it should: after the one before it, directly unless there is a ``...`` between."""
    at, anywhere = 0, False
    for line in expected:
        if line == "...":
            anywhere = True
            continue
        here = found.index(line, at) if line in found[at:] else -1
        if here < 0 or (here != at and not anywhere):
            return line
        at, anywhere = here + 1, False
    return None if anywhere or at == len(found) else found[at]


@pytest.mark.parametrize(("command", "expected"), BLOCKS, ids=[command[:40] for command, _ in BLOCKS])
def test_a_command_prints_what_the_walkthrough_shows(command: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert missing([line.rstrip() for line in expected.rstrip("\n").split("\n")], printed(command, capsys)) is None


def test_a_line_that_is_not_printed_is_missed() -> None:
    found = ["a", "b", "c", "d"]
    assert missing(["a", "...", "c", "d"], found) is None
    assert missing(["a", "c", "..."], found) == "c"
    assert missing(["...", "c", "b", "..."], found) == "b"
    assert missing(["a", "b"], found) == "c"
