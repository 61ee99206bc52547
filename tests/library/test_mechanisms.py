"""The mechanisms of the catalogue: each is there, and is built on what it says."""

from __future__ import annotations

import re

import pytest

from einfuse.library import mechanisms, table


def test_sixty_and_more_are_there() -> None:
    found = mechanisms.mechanisms()
    assert len(found) >= 60
    assert len({m.number for m in found}) == len(found)
    assert all(re.fullmatch(r"[AB]\d+", m.number) for m in found)


def test_layers_are_built_on_the_specs() -> None:
    """A layer that names no spec gets its own from its base class."""
    built = table.built_on()
    for m in mechanisms.mechanisms():
        for layer in m.layers:
            assert not built[layer] or built[layer] & set(m.specs), f"{m.number}: {layer} is built on {built[layer]}"


def test_every_spec_is_compared_with_a_formula() -> None:
    text = (table.FOLDER / "README.md").read_text(encoding="utf-8")
    for m in mechanisms.mechanisms():
        for spec in m.specs:
            assert f"| [{spec}](" in text
    assert "| none |" not in text


def test_what_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanisms, "TEXT", "A1 Nothing | full nowhere | NoLayer\n")
    with pytest.raises(ValueError, match="A1 Nothing: there is no nowhere, NoLayer"):
        mechanisms.mechanisms()
