"""The tables of the grammar, kept beside it: the same parser, and never a damaged one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lark import Lark

from einfuse.dsl import syntax
from einfuse.dsl.tokens import GRAMMAR

TEXT = GRAMMAR.read_text(encoding="utf-8")
SPEC = "attention f over b { rank j: key; in x[b, j]; o = sum[j](x); out o }"


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The grammars that are made from now on."""
    made: list[str] = []

    class Counting(Lark):
        def __init__(self, text: str, **options: object) -> None:
            made.append(text)
            super().__init__(text, **options)

    monkeypatch.setattr(syntax, "Lark", Counting)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    return made


def test_tables_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, kept = counted(monkeypatch), tmp_path / "__pycache__" / "a.tables"
    parsers = [syntax._tables(TEXT, kept) for _ in range(2)]
    assert made == [TEXT]
    assert parsers[0].parse(SPEC) == parsers[1].parse(SPEC)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda x: x[:-9], lambda x: b"", lambda x: x[:50] + b"!" + x[51:]])
def test_damaged_tables_are_made_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, kept = counted(monkeypatch), tmp_path / "a.tables"
    whole = syntax._tables(TEXT, kept).parse(SPEC)
    kept.write_bytes(damage(kept.read_bytes()))
    assert syntax._tables(TEXT, kept).parse(SPEC) == whole
    assert made == [TEXT, TEXT]


def test_a_folder_that_cannot_be_written_to_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    (tmp_path / "file").write_text("")
    for _ in range(2):
        syntax._tables(TEXT, tmp_path / "file" / "a.tables").parse(SPEC)
    assert made == [TEXT, TEXT]
