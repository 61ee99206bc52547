"""The mechanisms of the catalogue: each is there, and is built on what it says."""

from __future__ import annotations

from einfuse.library import table
from einfuse.library.catalogue import mechanisms


def test_sixty_and_more_are_there() -> None:
    found = mechanisms()
    assert len(found) >= 60


def test_layers_are_built_on_the_specs() -> None:
    """A layer that names no spec gets its own from its base class."""
    built = table.built_on()
    for m in mechanisms():
        for layer in m.layers:
            assert not built[layer] or built[layer] & set(m.specs), f"{m.number}: {layer} is built on {built[layer]}"


def test_every_spec_is_compared_with_a_formula() -> None:
    text = (table.FOLDER / "README.md").read_text(encoding="utf-8")
    for m in mechanisms():
        for spec in m.specs:
            assert f"| [{spec}](" in text
    assert "| none |" not in text
