"""The pages on integrations and layers: their examples run, and their tables name everything."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path

import pytest
from torch import nn

from einfuse.library import layers, models

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


EXAMPLES = [(page, n) for page in ("integrations.md", "layers.md", "testing.md") for n in range(len(blocks(page)))]
EXAMPLES.remove(("integrations.md", 1))  # timm's, run by tests/integrations/test_timm.py


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the model libraries' own
@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_examples_run(page: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from einfuse.runtime import backends, ops

    # the reference back end computes the same, and needs no compiler for a dozen kernels
    monkeypatch.setattr(ops, "choose", lambda device, wanted=None: backends.BACKENDS[wanted or "torch"])
    exec(compile(blocks(page)[number], page, "exec"), {})


def test_the_layers_page_names_every_layer_and_model() -> None:
    text = (DOCS / "layers.md").read_text(encoding="utf-8")
    public = {n for n, x in vars(layers).items() if inspect.isclass(x) and issubclass(x, nn.Module)} - {"Attending"}
    assert [n for n in sorted(public) if f"| `{n}` |" not in text] == []
    names = {p.stem for p in Path(models.__file__).resolve().parent.glob("[a-z]*_*.py")}
    assert len(names) >= 8
    assert [n for n in sorted(names) if f"| `python -m einfuse.library.models.{n}` |" not in text] == []
    for name in names:
        assert importlib.util.find_spec(f"einfuse.library.models.{name}") is not None
