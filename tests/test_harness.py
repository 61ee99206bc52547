"""What the benchmarks share (benchmarks/harness.py): turns, figures, tables and files."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from narrowed import only

import einfuse

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("harness")


def test_calls_are_measured_in_turns(harness: Any) -> None:
    said: list[str] = []
    figures = iter(range(100))

    def measure(run: Callable[[], None]) -> int:
        run()
        return next(figures)

    row = {n: lambda n=n: said.append(n) for n in "ab"}
    found = harness.turns(row, 2, skipped=1, measure=measure, before=lambda n: said.append(f"before {n}"))
    assert said == ["before a", "a", "before b", "b"] * 3
    assert found == {"a": [2, 4], "b": [3, 5]}, "the first turn does not count"


def test_a_slow_call_is_not_repeated(harness: Any) -> None:
    said: list[str] = []
    row = {n: lambda n=n: said.append(n) for n in "ab"}
    found = harness.turns(row, 3, skipped=2, measure=lambda run: (run(), 9.0 if said[-1] == "a" else 1.0)[1], slow=5.0)
    assert said == ["a", "b", "a", "b", "b", "b", "b"]
    assert found == {"a": [9.0] * 3, "b": [1.0] * 3}


def test_quartiles(harness: Any) -> None:
    assert harness.spread([4.0]) == (4.0, 4.0, 4.0)
    found = harness.spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    assert (found.median, found.low, found.high, found.width) == (4.0, 2.0, 6.0, 4.0)


def test_a_file_is_written_whole_or_not_at_all(harness: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.json"
    harness.write(path, {"rows": [{"ratio": float("nan")}]})
    found = json.loads(path.read_text())
    assert found["rows"] == [{"ratio": None}]
    assert (found["torch"], found["einfuse"]) == (torch.__version__, einfuse.__version__)
    assert found["processor"]
    before = path.read_text()
    with pytest.raises(TypeError):
        harness.write(path, {"rows": object()})
    assert path.read_text() == before
    assert list(path.parent.iterdir()) == [path]


def test_rows_stand_under_their_heads(harness: Any, capsys: pytest.CaptureFixture[str]) -> None:
    table = harness.Table("spec:8", "ms:7.2f", "remark")
    table.row("causal", 1.005, "[bold] is text")
    table.row("full", None, "-")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert table.rows[1] == {"spec": "full", "ms": None, "remark": "-"}
    assert lines == ["spec           ms  remark", "causal       1.00  [bold] is text", "full               -"]


def test_scripts_share_their_options(harness: Any) -> None:
    made = harness.options("About 100 % of it.\n\n    a line", repeats=7, threads=1, only=("a", "b"), json=True, width=64)
    args = made.parse_args(["--only", "b", "--json", "x.json"])
    assert vars(args) == {"repeats": 7, "threads": 1, "only": ["b"], "json": Path("x.json"), "width": 64}
    assert "About 100 % of it.\n\n    a line" in made.format_help()
    assert "64 unless given" in made.format_help()


def test_a_call_without_its_kernels(harness: Any) -> None:
    """What the host costs is measured with kernels that write nothing; what they would write is NaN in tests (`EINFUSE_POISON`)."""
    x = torch.ones(1, 1, 2, 4)
    attention = einfuse.compile("causal", backend="cpu")
    assert torch.equal(only(attention(x, x, x)), x)
    with harness.no_kernels():
        assert only(attention(x, x, x)).isnan().all()
    assert torch.equal(only(attention(x, x, x)), x)
