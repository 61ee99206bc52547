"""Families of transformers whose attention or masks are unlike the others', by the sweep over all (`benchmarks/transformers_families.py`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from einfuse import integrations

pytest.importorskip("transformers", minversion="5")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the model library's own

FAMILIES = {
    "AfmoeForCausalLM": "takes views of what attention gives",
    "DeepseekV32ForCausalLM": "gives the keys that an indexer chose, where it is run by another name than eager or sdpa",
    "DeepseekV4ForCausalLM": "appends columns to its masks, as floats; sinks",
    "DogeForCausalLM": "makes its mask of values",
    "Llama4ForCausalLM": "chunks",
    "MiniMaxForCausalLM": "its cache keeps keys of some layers",
}


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    integrations.transformers.register("einfuse", backend="torch")
    import transformers_families

    return transformers_families


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_gives_what_its_stock_attention_gives(name: str, families: Any) -> None:
    verdict, why = families.judged("causal", name)
    assert verdict == "equal", why
    assert int(why.split()[0]) > 5, "few calls say little"
