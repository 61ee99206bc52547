"""Every model: three steps at the smallest sizes, and the command with its files."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

from einfuse.library import models
from einfuse.library.models import training

NAMES = sorted(p.stem for p in Path(models.__file__).resolve().parent.glob("[a-z]*_*.py"))
"""What learns is called by its data and its model; what it is made of has one word."""

if importlib.util.find_spec("sklearn") is None:
    pytest.skip("scikit-learn, whose data the models learn, is not installed", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_three_steps(name: str) -> None:
    task = importlib.import_module(f"einfuse.library.models.{name}").build(True, "torch")
    assert task.name == name
    before = {n: p.detach().clone() for n, p in task.model.named_parameters()}
    fixed = task.loss(torch.Generator().manual_seed(7)).item()
    result = training.train(task, 3)
    assert len(result.losses) == 3
    assert all(torch.isfinite(torch.tensor(result.losses)))
    assert task.loss(torch.Generator().manual_seed(7)).item() < fixed, "the loss of one batch falls"
    still = [n for n, p in task.model.named_parameters() if torch.equal(p, before[n]) and p.grad is None]
    assert still == [], "parameters that no gradient reaches"


def test_there_are_eight_or_more() -> None:
    assert len(NAMES) >= 8


@pytest.mark.slow
def test_the_command_writes_a_checkpoint_and_a_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module("einfuse.library.models.wine_gat")
    result = training.command(module.build, ["--tiny", "--backend", "torch", "--steps", "4", "--out", str(tmp_path / "run")])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["loss.png", "model.pt"]
    assert (tmp_path / "run" / "loss.png").read_bytes().startswith(b"\x89PNG")
    kept = torch.load(tmp_path / "run" / "model.pt")
    module.build(True, "torch").model.load_state_dict(kept["model"])
    assert tuple(kept["losses"]) == result.losses
    assert "wine_gat" in capsys.readouterr().out


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = training.Task("t", torch.nn.Linear(1, 1), lambda g: torch.zeros(()), lambda: ("x", 0.0), 1)
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")

    def full_disk(_: object, file: str) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        training.save(task, training.Result((1.0,), "x", 0.0, 0.0, 0.0), path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert path.read_bytes() == b"old"


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    layer = torch.nn.Linear(1, 1)
    task = training.Task("t", layer, lambda g: layer.weight.sum() * torch.inf, lambda: ("x", 0.0), 1)
    with pytest.raises(FloatingPointError, match="t: the loss of step 0 is"):
        training.train(task, 2)
