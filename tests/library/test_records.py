"""Data of the library says what its schemas allow: library/schemas, which editors read too."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from einfuse.library import catalogue

FOLDER = catalogue.DATA.parent
RECORDS = {"catalogue": "catalogue.toml", "verified": "verified.json", "modes": "modes.json"}


def loaded(path: Path) -> Any:
    text = path.read_text(encoding="utf-8")
    return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)


def checker(name: str) -> jsonschema.Draft202012Validator:
    schema = loaded(FOLDER / "schemas" / f"{name}.json")
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", RECORDS)
def test_records_are_as_their_schemas_say(name: str) -> None:
    assert {p.stem for p in (FOLDER / "schemas").iterdir()} == set(RECORDS)
    checker(name).validate(loaded(FOLDER / RECORDS[name]))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("catalogue", {"A1": {"specs": ["full"]}}),
        ("catalogue", {"A1": {"name": "x"}}),
        ("catalogue", {"A1": {"name": "x", "specs": ["full"], "why": "no"}}),
        ("catalogue", {"A1": {"name": "x", "status": "soon", "why": "no"}}),
        ("catalogue", {"D1": {"name": "x", "specs": ["full"]}}),
        ("verified", {"full": {"content": "0" * 16, "on": ["gpu float32"], "comparisons": 3, "wrong": 0}}),
        ("verified", {"full": {"content": "0" * 16, "on": ["cpu float32"], "comparisons": 0, "wrong": 0}}),
        ("modes", {"full": {"content": "0" * 16, "cascade": "0" * 16, "export": "perhaps"}}),
        ("modes", {"full": {"content": "0" * 16, "export": "yes"}}),
    ],
)
def test_what_is_wrong_is_found(name: str, wrong: object) -> None:
    assert not checker(name).is_valid(wrong)
