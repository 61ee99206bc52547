"""The mechanisms of the catalogue: each is there, and is built on what it says."""

from __future__ import annotations

import re

import pytest

import einfuse
from einfuse.library import catalogue, layers, mechanisms, table


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


def test_every_entry_of_the_catalogue_is_there_once() -> None:
    """`entries` raises for a number that is missing or there twice; what it works with exists, as mechanisms() raises otherwise."""
    every = catalogue.entries()
    assert len(every) == 183 + 24 + 19
    assert sum(e.status == "works" for e in every if e.number.startswith("A")) >= 150
    assert catalogue.PAGE.read_text(encoding="utf-8") == catalogue.page(), "run python -m einfuse.library.catalogue"


def test_names_in_reasons_are_specs_and_layers() -> None:
    known = {s.name for s in einfuse.list_specs()} | {n for n in dir(layers) if not n.startswith("_")}
    beside = {"einfuse.varlen", "einfuse passes", "split"}
    for e in catalogue.entries():
        assert set(re.findall(r"`([^`]+)`", e.what)) <= known | beside, e


def test_an_entry_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "REST", catalogue.REST.replace("A7   BUS", "A8   BUS"))
    with pytest.raises(ValueError, match="missing, unknown, or there twice: A7, A8"):
        catalogue.entries()
