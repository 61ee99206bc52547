"""`einfuse tiles`: the map as text, JSON and a picture, and the loop bounds beside it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from einfuse.cli import main


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["tiles", *argv]) == 0
    return capsys.readouterr().out


def reported(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    return json.loads(printed(capsys, *argv, "--json"))


def test_the_map_and_its_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "sliding_window", "--shape", "1,2,160,192", "--tile", "32", "-p", "window=40")
    lines = text.splitlines()
    assert lines[0] == "sliding_window: tiles of 32 x 32, 40 % live"
    assert lines[1] == "  where j <= i and i - j < window[]"
    assert "i.hi" in lines[2]
    assert lines[3:] == [
        "       0 ▒····· [0, 32)",
        "      32 ▒▒···· [0, 64)",
        "      64 ▒▒▒··· [0, 96)",
        "      96 ·▒▒▒·· [32, 128)",
        "     128 ··▒▒▒· [64, 160)",
    ]


def test_json_agrees_with_the_mask(capsys: pytest.CaptureFixture[str]) -> None:
    found = reported(capsys, "causal", "--shape", "1,1,100,80", "--tile", "32,16")
    wanted = [[2 if 16 * c + 15 <= 32 * r else 1 if 16 * c <= min(32 * r + 31, 99) else 0 for c in range(5)] for r in range(4)]
    assert found["kind"] == wanted
    assert found["live_fraction"] == pytest.approx(sum(k > 0 for row in wanted for k in row) / 20)
    assert found["spans"] == [[[[0, min(80, 32 * r + 32, 100)]] for r in range(4)]]
    assert found["tabulated"] is False
    assert found["ranks"] == []


def test_bounds_cover_the_live_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    """For every head and batch element of the masks that read tables."""
    for spec, ranks in (("head_windows", ["h"]), ("prefix", ["b"]), ("streaming", [])):
        found = reported(capsys, spec, "--shape", "2,3,300,300", "--tile", "32")
        assert found["ranks"] == ranks
        kinds = found["kind"] if ranks else [found["kind"]]
        for kind, spans in zip(kinds, found["spans"], strict=True):
            for row, ranges in zip(kind, spans, strict=True):
                visited = {c for lo, hi in ranges for c in range(lo // 32, -(-hi // 32))}
                assert {c for c, k in enumerate(row) if k} <= visited


def test_masks_without_a_closed_form(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "document", "--shape", "2,1,128,128", "--limit", "2")
    assert "no closed form: a table of live tiles is made at launch" in text
    assert "b = 0" in text
    assert "b = 1" in text
    found = reported(capsys, "document", "--shape", "2,1,128,128")
    assert found["tabulated"] is True
    assert found["spans"] == []


def test_a_long_mask_fits_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "causal", "--shape", "1,1,20000,20000")
    rows = text.splitlines()[3:]
    assert len(rows) <= 64
    assert max(map(len, rows)) < 120


def test_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "tiles.png"
    printed(capsys, "cross_shaped", "--shape", "1,2,256,256", "--limit", "2", "--png", str(file))
    data = file.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > height > 500


@pytest.mark.parametrize(
    "argv",
    [
        ("--shape", "1,2,3"),
        ("--shape", "1,2,3,x"),
        ("--shape", "1,1,64,64", "--tile", "24"),
        ("--shape", "1,1,64,64", "--tile", "1,2,4"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tiles", "causal", *argv])
    assert caught.value.code == 2
    assert "is not" in capsys.readouterr().err


def test_a_spec_without_a_loop(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "copy.attn"
    path.write_text("attention copy over b { rank i: query; rank d: feature; in q[b, i, d]; o = q * 2; out o }")
    assert main(["tiles", str(path), "--shape", "1,1,8,8"]) == 1
    assert "copy has no loop over keys" in capsys.readouterr().err
