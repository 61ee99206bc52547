"""The page on masks: its examples run, and its table names the specs of the library, each of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import einfuse
from einfuse.runtime import backends, ops

PAGE = (Path(__file__).parents[1] / "docs" / "masks.md").read_text(encoding="utf-8")


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "choose", lambda device, wanted=None: backends.BACKENDS[wanted or "torch"])
    found: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "masks.md", "exec"), found)
    assert getattr(found["o"], "shape", None) == (100, 4, 16)


def test_the_table_names_every_mask() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    named = {n for line in rows for n in re.findall(r"`(\w+)`", line)}
    masks = {s.name for s in einfuse.list_specs() if s.family == "masks"}
    assert masks - {"causal"} <= named
    assert named <= {s.name for s in einfuse.list_specs()}
