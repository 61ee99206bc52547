"""The page on serving: its example runs, its spec is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from einfuse.dsl import compile_text
from einfuse.ir.passes import cache
from einfuse.runtime import backends

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("text", blocks("python"))
def test_the_examples_run(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "choose", lambda device, wanted=None: backends.BACKENDS[wanted or "torch"])
    exec(compile(text, "serving.md", "exec"), {})


@pytest.mark.parametrize("text", blocks("attn"))
def test_the_specs_are_read_from_a_cache(text: str) -> None:
    assert cache.run(compile_text(text)).own.keys() == {"q", "tree"}
