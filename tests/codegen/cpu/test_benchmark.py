"""benchmarks/cpu.py: its limits, its figures and its files, on one small case."""

import json
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))


@pytest.mark.slow
def test_figures_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import cpu as benchmark
    import cpu_peak

    monkeypatch.setattr(cpu_peak, "REPEATS", 50_000)
    monkeypatch.setattr(cpu_peak, "COPIED", 4 << 20)
    where = ["--out", str(tmp_path), "--threads", "1", "--clock", "cpu"]
    what = [*where, "--dtypes", "float32", "--lengths", "200", "--heads", "2", "--runs", "3", "--peers", "sdpa", "--variants"]
    assert benchmark.main([*what, "causal"]) == 0
    result = json.loads((tmp_path / "cpu.json").read_text())
    (ours,) = result["rows"]
    assert (ours["variant"], ours["direction"]) == ("causal", "forward")
    assert set(ours["milliseconds"]) == {"einfuse", "sdpa"}
    assert ours["gflops"] == pytest.approx(4 * 2 * 64 * 200 * 201 / 2 / ours["milliseconds"]["einfuse"] / 1e6, rel=1e-6)
    assert 0 < ours["of_peak"] < 1.1
    assert ours["most"]["sdpa"] == pytest.approx(ours["ratio"]["sdpa"] / ours["of_peak"])
    assert ours["difference"] < 1e-5
    assert result["limits"]["f32"] > 1
    assert (tmp_path / "cpu.png").stat().st_size > 1000
    assert "causal" in capsys.readouterr().out
    assert benchmark.main([*what, "causal", "full"]) == 0  # goes on: what was measured stays
    again = json.loads((tmp_path / "cpu.json").read_text())["rows"]
    assert again[0] == ours
    assert [r["variant"] for r in again] == ["causal", "full"]


def test_a_wrong_result_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cpu as benchmark

    monkeypatch.setattr(benchmark, "peaks", lambda threads, clock: {"f32": 1.0, "bf16": 1.0, "copy": 1.0})
    monkeypatch.setattr(benchmark, "WRONG", {torch.float32: -1.0})
    code = benchmark.main(["--out", str(tmp_path), "--threads", "1", "--variants", "full", "--dtypes", "float32", "--lengths", "32",
                           "--heads", "1", "--runs", "1", "--peers", "sdpa"])  # fmt: skip
    assert code == 1


def test_processor_time_needs_one_thread(tmp_path: Path) -> None:
    import cpu as benchmark

    with pytest.raises(SystemExit):
        benchmark.arguments(["--clock", "cpu", "--threads", "2"])
