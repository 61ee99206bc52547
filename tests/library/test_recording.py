"""library/modes.json: what was run of every spec, by which text and cascade, and that recording goes on where it stopped."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import einfuse
from einfuse.library import modes, recording, verified

SAMPLE = ("causal", "gated_delta", "swin_window", "deformable", "relative_position", "taylor2")


def test_the_record_is_of_the_specs_as_they_stand() -> None:
    """Where this fails: `python -m einfuse.library.recording`, which runs what is missing, then `python -m einfuse.library.modes`."""
    known = recording.read()
    assert {n: line["content"] for n, line in known.items()} == {n: verified.content(p) for n, p in verified.texts().items()}
    assert all(line.keys() >= recording.CHECKS.keys() for line in known.values())
    assert {n: known[n]["cascade"] for n in SAMPLE} == {n: recording.digest(n) for n in SAMPLE}


@pytest.mark.slow
def test_every_record_is_of_the_cascade_that_the_spec_is_compiled_to() -> None:
    known = recording.read()
    assert [n for n in known if known[n]["cascade"] != recording.digest(n)] == []


def test_a_wrong_result_and_a_fault_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(einfuse.Attention, "reference", lambda self, **x: self(**x) * 2)
    assert re.fullmatch(r"no: .* apart", recording.cell(recording.twice_backward, "causal"))
    monkeypatch.setattr(einfuse.Attention, "reference", lambda self, **x: None)
    assert recording.cell(recording.twice_backward, "causal").startswith("raised ")
    assert modes.told(lambda: "3") == "yes"


def test_recording_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = verified.texts()
    monkeypatch.setattr(recording, "RECORD", tmp_path / "modes.json")
    monkeypatch.setattr(verified, "texts", lambda: {n: texts[n] for n in ("causal", "full")})
    ran: list[str] = []

    def step(name: str) -> str:
        ran.append(name)
        return "yes"

    monkeypatch.setattr(recording, "CHECKS", {"step": step})
    assert recording.main([]) == 0
    assert ran == ["causal", "full"]
    (tmp_path / "modes.json").write_text(json.dumps({**recording.read(), "full": {"content": "another text"}}))
    assert recording.main([]) == 0
    assert ran == ["causal", "full", "full"]
    assert recording.read()["full"]["content"] == verified.content(texts["full"])
