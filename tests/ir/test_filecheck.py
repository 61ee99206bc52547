"""Small texts before and after every pass and transform, each in one file of filecheck/ that names its passes.

A file is the cascade to start from, with the command in a comment of its first line, and after ``----`` the cascades that the command prints.
`pytest --update-golden` writes the second part.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from einfuse.ir import text
from einfuse.ir.passes import opt
from einfuse.ir.passes.registry import TRANSFORMS
from einfuse.ir.passes.sequence import PIPELINE
from einfuse.ir.verify import verify

FOLDER = Path(__file__).parent / "filecheck"
FILES = sorted(FOLDER.iterdir())
RUN = re.compile(r"# RUN: einfuse opt --passes (.*)\n")
CUT = "----\n"
MOST_LINES = 80


def steps(file: Path) -> tuple[opt.Step, ...]:
    found = RUN.match(file.read_text(encoding="utf-8"))
    assert found, f"{file.name} begins with no `# RUN: einfuse opt --passes ...`"
    return opt.parse(found[1])


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_pass(file: Path, request: pytest.FixtureRequest) -> None:
    before, _, expected = file.read_text(encoding="utf-8").partition(CUT)
    made = opt.apply(steps(file), verify(text.parse(before, file.name)))
    for c in made:
        assert text.parse(text.show(verify(c))) == c
    after = CUT.join(text.show(c) + "\n" for c in made)
    if request.config.getoption("--update-golden"):
        file.write_text(before + CUT + after, encoding="utf-8")
        return
    assert after == expected
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, "small enough to be read"


def test_every_pass_has_a_file_and_every_file_a_pass() -> None:
    named = {f.stem: steps(f)[-1].of.name for f in FILES}
    assert {p.name for p in (*PIPELINE, *TRANSFORMS)} - {"build"} == set(named.values())
    assert {stem for stem, name in named.items() if not stem.startswith(name)} == set()
