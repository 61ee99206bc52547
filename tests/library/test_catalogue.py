"""Every paper of the catalogue: works, later or out, each once, with a reason that names what exists."""

from __future__ import annotations

import re

import pytest

import einfuse
from einfuse.library import catalogue, layers, mechanisms


def test_every_entry_of_the_catalogue_is_there_once() -> None:
    """`entries` raises for a number that is missing or there twice; what it works with exists, as mechanisms() raises otherwise."""
    every = catalogue.entries()
    assert len(every) == 183 + 24 + 19
    works = [e.number[0] for e in every if e.status == "works"]
    assert len(works) - works.count("C") >= 205
    assert works.count("C") >= 12
    assert catalogue.PAGE.read_text(encoding="utf-8") == catalogue.page(), "run python -m einfuse.library.catalogue"


def test_what_came_after_is_listed_once() -> None:
    newer = mechanisms.parsed(catalogue.NEWER)
    assert [m.number for m in newer] == [f"N{n + 1}" for n in range(len(newer))]
    assert len({m.name for m in newer}) == len(newer) >= 45
    named = {n for m in mechanisms.mechanisms() for n in m.specs}
    assert len({s for m in newer for s in m.specs} - named) >= 45, "they are others than the catalogue's"


def test_names_in_reasons_are_specs_and_layers() -> None:
    known = {s.name for s in einfuse.list_specs()} | {n for n in dir(layers) if not n.startswith("_")}
    beside = {
        "quantise",
        "pre_rms_norm",
        "redundancy",
        "without",
        "RecursiveStack",
        "einfuse.varlen",
        "einfuse passes",
        "split",
        "shard",
        "states",
    }
    for e in catalogue.entries():
        assert set(re.findall(r"`([^`]+)`", e.what)) <= known | beside, e


def test_an_entry_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "REST", catalogue.REST.replace("A72  X-ray", "A45  X-ray"))
    with pytest.raises(ValueError, match="missing, unknown, or there twice: A45, A72"):
        catalogue.entries()
