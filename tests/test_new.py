"""`einfuse new`: what it writes is good, and it never overwrites."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import einfuse
from einfuse.cli import main

pytestmark = pytest.mark.slow


def test_a_new_attention_passes_its_own_test(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert main(["new", "soft_window", "--folder", str(folder)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["soft_window.attn", "soft_window.py", "test_soft_window.py"]
    assert main(["fmt", "--check", str(folder / "soft_window.attn")]) == 0
    assert "class SoftWindow(nn.Module)" in (folder / "soft_window.py").read_text()
    path = str(Path(einfuse.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "3 passed" in run.stdout


def test_the_test_it_writes_can_fail(tmp_path: Path) -> None:
    assert main(["new", "bad", "--folder", str(tmp_path)]) == 0
    spec = tmp_path / "bad.attn"
    spec.write_text(spec.read_text().replace("where j <= i  #", "where j < i + 2  #"))
    found = importlib.util.spec_from_file_location("test_bad", tmp_path / "test_bad.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    with pytest.raises(AssertionError):
        module.test_the_spec_is_the_formula()
    with pytest.raises(AssertionError):
        module.test_the_layer_is_causal_and_trains()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("precious")
    assert main(["new", "mine", "--folder", str(tmp_path)]) == 1
    assert "mine.py exists already; nothing was written" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.py"]
    assert (tmp_path / "mine.py").read_text() == "precious"


@pytest.mark.parametrize("name", ["Upper", "a-b", "../up", "class", "rank", "9lives", ""])
def test_names_that_are_none(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", name, "--folder", str(tmp_path)]) == 1
    assert f"found {name!r}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
