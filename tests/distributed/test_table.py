"""The table of docs/distributed.md is that of the library: every spec is in it, and a sample of rows is derived again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from einfuse.distributed.table import row, table
from einfuse.runtime.specs import library

DOC = Path(__file__).parents[2] / "docs" / "distributed.md"
TABLE = re.compile(r"(?<=<!-- shards -->\n).*?(?=<!-- end of shards -->)", re.DOTALL)
SAMPLE = ("causal", "entmax15", "gated_delta", "context_pool", "clusters", "swin_window", "talking_heads", "lmu")


def test_the_table_is_current(request: pytest.FixtureRequest) -> None:
    text = DOC.read_text(encoding="utf-8")
    if request.config.getoption("--update-golden"):
        DOC.write_text(TABLE.sub(lambda _: table(), text), encoding="utf-8")
    found = {line.split("`")[1]: line for line in TABLE.findall(DOC.read_text(encoding="utf-8"))[0].splitlines()[2:]}
    assert set(found) == set(library())
    assert {n: found[n] for n in SAMPLE} == {n: row(n) for n in SAMPLE}
    sharded = [n for n, line in found.items() if "| yes |" in line]
    assert len(sharded) >= 0.85 * len(found)
