"""What the tests of the language share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from einfuse import dsl
from einfuse.ir import Cascade
from einfuse.ir.text import show_body
from einfuse.ir.verify import verify

HEAD = """  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
"""


@pytest.fixture
def cascade() -> Callable[..., Cascade]:
    """Elaborates the body of an attention over b, h with q, k and v declared, and verifies the result."""

    def build(body: str, header: str = "", before: str = "", **options: object) -> Cascade:
        text = f"{before}\nattention t{header} over b, h {{\n{HEAD}{body}\n}}"
        return verify(dsl.compile_text(text, **options))  # type: ignore[arg-type]  # tests pass what fits

    return build


@pytest.fixture
def body(cascade: Callable[..., Cascade]) -> Callable[..., list[str]]:
    """The statements that a body becomes, as text."""

    def build(text: str, *args: str, **options: object) -> list[str]:
        return [line.strip() for line in show_body(cascade(text, *args, **options)).splitlines()]

    return build
