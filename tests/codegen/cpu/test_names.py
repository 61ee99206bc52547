"""What a generated kernel calls its own things hides nothing that the headers give it."""

from __future__ import annotations

import re

import pytest
import torch

import einfuse
from einfuse.codegen.cpu.names import HEADERS, reserved

DECLARED = re.compile(
    r"\b(?:long|int|bool|float|double|auto|char|T|V|VI|I)\s*[*&]?\s*(?:__restrict\s+)?([A-Za-z_]\w*)\s*(?==|;|,|\[)"
)
FUNCTION = re.compile(r"\bINLINE\s+[\w<>:\s*&]+?\b([a-z]\w*)\s*\(")
VARIED = ("causal", "cosine", "linear", "gated_delta", "swin", "entmax15", "paged", "topk", "talking_heads")


def functions() -> set[str]:
    """Of all headers."""
    return {n for p in HEADERS.values() for n in FUNCTION.findall(p.read_text())}


def test_functions_of_headers_are_found_and_kept_from_values() -> None:
    assert "in_order" in functions()
    assert len(functions()) > 30
    assert functions() <= reserved()
    assert DECLARED.findall("const long in_order = 3; T *row = out; auto [a, b] = c;") == ["in_order", "row"]


@pytest.mark.parametrize("name", VARIED)
def test_no_variable_of_a_kernel_hides_a_function(name: str) -> None:
    """`in_order<24>(..)` beside a number of that name is a comparison, which compiles."""
    for c in einfuse.compile(name).candidates("cpu", torch.float32, True, {}):
        start = c.source.index("einfuse_kernel")  # the headers stand before it
        declared = set(DECLARED.findall(c.source[start:]))
        assert declared, c.plan.name
        assert not declared & functions(), c.plan.name
