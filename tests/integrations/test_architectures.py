"""The table of architectures in docs/integrations.md: each as eager attention has it, or refused, as the table says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from einfuse import integrations

pytest.importorskip("transformers", minversion="5")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the model library's own

ROOT = Path(__file__).parents[2]
STEPS = 6  # `python benchmarks/transformers_table.py` takes 40, in every combination
OWN_CODE = ("Bloom", "MPT")


def documented() -> dict[str, str]:
    """The rows of the table: an architecture, and what is said of it."""
    text = (ROOT / "docs" / "integrations.md").read_text().partition("| architecture |")[2].partition("\n\n")[0]
    return {name: rest for name, rest in re.findall(r"^\| ([^|]+?) \| (.*) \|$", text, re.M) if not name.startswith("-")}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    integrations.transformers.register("einfuse", backend="torch")
    import transformers_table

    return transformers_table


@pytest.mark.parametrize("name", documented())
def test_an_architecture_is_as_with_eager_attention_or_refused(name: str, table: Any) -> None:
    same, other = table.judged(name, STEPS, few=True)
    if name in OWN_CODE:
        assert "it computes attention by its own code" in other["refused"]
        assert "refused" in documented()[name]
    else:
        assert not other
        kind = table.KINDS.get(name, "causal")
        assert len(same) == (1 if kind == "image" else 3) + (len(table.FEW) if kind in ("causal", "seq2seq") else 0)


def test_the_table_names_them_all(table: Any) -> None:
    assert list(documented()) == list(table.TABLE)
