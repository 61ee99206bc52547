"""The record of verifications: what it takes from a report, and that it is true of the texts as they stand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from einfuse.library import verified

ROW = {"name": "full", "backend": "cpu", "dtype": "float32", "what": "out 0", "error": 0.1, "allowed": 0.2, "ok": True}


def test_what_is_on_record_is_of_the_texts_as_they_stand() -> None:
    """Where this fails: `einfuse verify NAME --json > report.json`, `python -m einfuse.library.verified report.json`, then the table."""
    known, paths = verified.read(), verified.texts()
    assert set(known) <= set(paths), "specs that are gone are on record"
    assert {n: s for n, f in known.items() if not verified.good(s := verified.status(paths[n], f))} == {}
    for finding in known.values():
        assert {"cpu float32", "triton float32", "cpu bfloat16", "triton bfloat16"} <= set(finding["on"])
        assert finding["comparisons"] >= 8


def test_a_report_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(verified, "RECORD", tmp_path / "verified.json")
    report = tmp_path / "report.json"
    wrong = ROW | {"what": "d q", "ok": False}
    report.write_text(json.dumps({"rows": [ROW, wrong, ROW | {"name": "causal", "backend": "triton"}]}))
    assert verified.main([str(report)]) == 1
    known = verified.read()
    paths = verified.texts()
    assert verified.status(paths["full"], known["full"]) == "1 of 2 wrong"
    assert verified.status(paths["causal"], known["causal"]) == "1 of 1"
    assert known["causal"]["on"] == ["triton float32"]
    said = capsys.readouterr().out
    assert "full: 1 of 2 wrong\n" in said
    assert "gat: not verified yet\n" in said
    assert f"1 of {len(paths)} specs are verified" in said


def test_a_finding_is_of_what_the_text_says(tmp_path: Path) -> None:
    spec = tmp_path / "a.attn"
    spec.write_text('"""One paper."""\nattention a over b { # a comment\n  in x[b]\n  out x\n}\n')
    finding = {"content": verified.content(spec), "comparisons": 3, "wrong": 0, "on": []}
    spec.write_text('"""Another paper."""\nattention a over b {\n  in x[b]\n\n  out x\n}\n')
    assert verified.status(spec, finding) == "3 of 3"
    spec.write_text('"""Another paper."""\nattention a over b {\n  in y[b]\n  out y\n}\n')
    assert verified.status(spec, finding) == "changed since it was verified"
    assert verified.status(spec, None) == "not verified yet"


def test_a_spec_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="speaks of nobody, which is no spec"):
        verified.findings([ROW | {"name": "nobody"}], verified.texts())


def test_a_form_counts_for_its_spec() -> None:
    found = verified.findings(
        [ROW | {"name": "taylor_shift"}, ROW | {"name": "taylor_shift (linear)", "ok": False}], verified.texts()
    )
    assert (found["taylor_shift"]["comparisons"], found["taylor_shift"]["wrong"]) == (2, 1)
