"""Every example of docs/language.md elaborates, is in canonical form but for its comments, or fails with the message that is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from einfuse import dsl
from einfuse.dsl.modules import REDUCERS, prelude
from einfuse.dsl.tokens import KEYWORDS
from einfuse.ir import FUNCTIONS, RANK_KINDS, SpecError
from einfuse.ir.verify import verify

TEXT = (Path(__file__).parents[2] / "docs" / "language.md").read_text(encoding="utf-8")
GOOD = re.findall(r"^```attn\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
BAD = re.findall(r"^```attn-error\n(.*?)^```\n```text\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PYTHON = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def name(text: object) -> str:
    found = re.search(r"attention (\w+)", str(text))
    return found.group(1) if found else "text"


@pytest.mark.parametrize("text", GOOD, ids=name)
def test_examples_elaborate(text: str) -> None:
    module = dsl.parse(text)
    optional = {x.name for x in dsl.signature(module).inputs if x.optional}
    for given in (set(), optional):
        verify(dsl.elaborate(module, given=given))
    squeezed = re.sub(r"  +#", "  #", text)
    assert dsl.format_text(text) == squeezed


@pytest.mark.parametrize(("text", "message"), BAD, ids=name)
def test_errors_read_as_shown(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        dsl.compile_text(text)
    assert str(caught.value) == message.rstrip("\n")


def test_the_python_example_runs() -> None:
    for code in PYTHON:
        scope: dict[str, object] = {}
        exec(compile(code, "language.md", "exec"), scope)
        assert getattr(scope["cascade"], "name", "") == "alibi_window_document"


def test_nothing_is_left_out() -> None:
    assert len(GOOD) >= 9
    assert len(BAD) >= 4
    words = set(re.findall(r"[A-Za-z_0-9]+", TEXT))
    functions = {f for f in FUNCTIONS if f.isidentifier()}
    for known in (KEYWORDS, functions, RANK_KINDS, REDUCERS, prelude().own):
        assert set(known) <= words, set(known) - words
