"""Every paper of the catalogue: works, later or out, each once, with a reason that names what exists; and what holds the mechanisms."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import einfuse
from einfuse.library import catalogue, layers


def test_every_entry_of_the_catalogue_is_there_once() -> None:
    """`entries` raises for a number that is missing, and for specs and layers that do not exist."""
    every = [e for e in catalogue.entries() if e.number[0] != catalogue.NEWER]
    assert len(every) == 183 + 24 + 19
    works = [e.number[0] for e in every if e.status == "works"]
    assert len(works) - works.count("C") >= 205
    assert works.count("C") >= 12
    assert catalogue.PAGE.read_text(encoding="utf-8") == catalogue.page(), "run python -m einfuse.library.catalogue"


def test_what_came_after_is_listed_once() -> None:
    newer = [e for e in catalogue.entries() if e.number[0] == catalogue.NEWER]
    assert len({m.name for m in newer}) == len(newer) >= 45
    named = {n for m in catalogue.mechanisms() for n in m.specs}
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


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("A72 =", "A184 =", "missing or unknown: A184, A72"),
        ("N3 =", "N300 =", "missing or unknown: N3, N300"),
        ("A45 =", "A44 =", r"Cannot mutate|overwrite"),
        ('status = "later"', 'status = "soon"', "specs or layers, or one of works, later, out with its reason"),
        (
            'specs = ["prior_map"]',
            'specs = ["prior_map", "nowhere"], layers = ["NoLayer"]',
            "A2 FOD: there is no nowhere, NoLayer",
        ),
        ('A2 = { name = "FOD",', "A2 = {", "A2: an entry has a name, status, specs, layers and why"),
    ],
)
def test_a_wrong_entry_is_said(before: str, after: str, said: str, tmp_path: Path) -> None:
    text = catalogue.DATA.read_text(encoding="utf-8")
    assert before in text
    path = tmp_path / "catalogue.toml"
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        catalogue.entries(path)
