"""The examples of clients run, and what they show is so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_first_spec_is_its_formula(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("first_spec").main(backend="torch", length=20) < 1e-4
    assert "3 as written, 1 after fusing" in capsys.readouterr().out


@pytest.mark.slow
def test_discs_are_round(tmp_path: Path) -> None:
    png = tmp_path / "discs.png"
    found = example("image_mask_2d").main(width=13, height=12, png=png, backend="torch")
    near, far = ([(y, x) for y in range(-6, 7) for x in range(-6, 7) if y * y + x * x <= r * r] for r in (2, 5))
    y, x = 6, 4
    for head, disc in ((0, near), (1, near), (2, far), (3, far)):
        inside = {(y + a, x + c) for a, c in disc if 0 <= y + a < 12 and 0 <= x + c < 13}
        assert {tuple(p) for p in found[head].nonzero().tolist()} == inside
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the model library's own
def test_a_model_of_transformers() -> None:
    same, other = example("huggingface").main(backend="torch")
    assert same < 1e-4
    assert other > 1e-3


@pytest.mark.slow
def test_properties_of_a_variant(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("property_test_own_variant").main(examples=5) >= 2
    assert capsys.readouterr().out.count("none fails") == 2
