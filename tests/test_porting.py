"""docs/porting.md: its examples run, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from einfuse import list_specs
from einfuse.dsl import parse, signature
from einfuse.runtime import backends, ops

PAGE = (Path(__file__).parents[1] / "docs" / "porting.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "choose", lambda device, wanted=None: backends.BACKENDS[wanted or "torch"])
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "porting.md", "exec"), scope)


def test_every_spec_that_a_row_names_is_there_with_its_arguments() -> None:
    specs = {s.name: s for s in list_specs()}
    own, fla = PAGE[PAGE.index("| FlexAttention |") : PAGE.index("| fla | spec |")], PAGE[PAGE.index("| fla | spec |") :]
    named = []
    for row in (line.split("|") for line in own.splitlines() if line.startswith("| ")):
        for name, rest in re.findall(r"specs? `(\w+)`([^;]*)", row[2]):
            given = signature(parse(specs[name].text))
            known = {p.name for p in given.params} | {x.name for x in given.inputs}
            assert set(re.findall(r"(\w+)=", rest.partition("(")[0])) <= known, row
            named.append(name)
    for row in (line.split("|") for line in fla.splitlines()[2:] if line.startswith("| ")):
        named += [n for n in re.findall(r"`(\w+)`", row[2]) if n not in ("doc", "initial")]
    assert [n for n in named if n not in specs] == []
    assert len(named) > 20
