"""Every paper of the catalogue: works, later or out, each once, with a reason that names what exists."""

from __future__ import annotations

import re

import pytest

import einfuse
from einfuse.library import catalogue, layers


def test_every_entry_of_the_catalogue_is_there_once() -> None:
    """`entries` raises for a number that is missing or there twice; what it works with exists, as mechanisms() raises otherwise."""
    every = catalogue.entries()
    assert len(every) == 183 + 24 + 19
    assert sum(e.status == "works" for e in every if e.number.startswith("A")) >= 150
    assert catalogue.PAGE.read_text(encoding="utf-8") == catalogue.page(), "run python -m einfuse.library.catalogue"


def test_names_in_reasons_are_specs_and_layers() -> None:
    known = {s.name for s in einfuse.list_specs()} | {n for n in dir(layers) if not n.startswith("_")}
    beside = {"einfuse.varlen", "einfuse passes", "split", "shard", "states"}
    for e in catalogue.entries():
        assert set(re.findall(r"`([^`]+)`", e.what)) <= known | beside, e


def test_an_entry_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "REST", catalogue.REST.replace("A64  Residual", "A45  Residual"))
    with pytest.raises(ValueError, match="missing, unknown, or there twice: A45, A64"):
        catalogue.entries()
