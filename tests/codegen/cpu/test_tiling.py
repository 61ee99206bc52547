"""Tiles follow the caches; the caches are those the machine names, whole per core."""

import os
from pathlib import Path

import pytest

from einfuse.codegen.cpu import Caches, tile, tiling


@pytest.mark.parametrize(
    ("first", "second", "width", "expected"),
    [(32, 1024, 64, 64), (48, 2048, 64, 64), (64, 1024, 64, 128), (16, 512, 64, 32), (64, 256, 128, 64), (32, 1024, 2048, 32)],
)
def test_a_step_fits(first: int, second: int, width: int, expected: int) -> None:
    assert tile("f32", width, False, Caches(first << 10, second << 10)) == (48, expected)


def test_wider_numbers_take_shorter_steps() -> None:
    assert tile("f64", 64, False, Caches())[1] == tile("f32", 64, False, Caches())[1] // 2
    assert tile("bf16", 64, False, Caches()) == (48, 128)
    assert tile("bf16", 64, True, Caches()) == (96, 64)


def test_what_the_machine_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, (kind, level, size, sharing) in enumerate(
        [("Instruction", 1, "64K", "0"), ("Data", 1, "48K", "0,4"), ("Unified", 2, "4096K", "0-3"), ("Unified", 3, "?", "0")]
    ):
        folder = tmp_path / f"index{n}"
        folder.mkdir()
        for name, text in (("type", kind), ("level", level), ("size", size), ("shared_cpu_list", sharing)):
            (folder / name).write_text(f"{text}\n")
    monkeypatch.setattr(tiling, "_CACHES", tmp_path)
    assert tiling.caches.__wrapped__() == Caches(48 << 10, 1 << 20)
    monkeypatch.setattr(tiling, "_CACHES", tmp_path / "none")
    monkeypatch.setattr(os, "sysconf", lambda name: -1)
    assert tiling.caches.__wrapped__() == Caches()
