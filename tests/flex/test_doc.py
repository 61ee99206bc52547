"""The examples of docs/flex.md run as they stand, one after the other."""

from __future__ import annotations

import linecache
import re
from pathlib import Path

import pytest

DOC = Path(__file__).parents[2] / "docs" / "flex.md"


@pytest.mark.slow
def test_the_examples() -> None:
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    space: dict[str, object] = {}
    for n, block in enumerate(blocks):
        name = f"docs/flex.md, example {n}"
        linecache.cache[name] = (len(block), None, block.splitlines(keepends=True), name)
        exec(compile(block, name, "exec"), space)
