"""No text, however broken, stops an editor: every answer comes, and every place in it lies inside the text."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutated import broken

from einfuse._editor import inside, names
from einfuse._editor.document import Document
from einfuse._editor.faults import quick_faults
from einfuse._editor.fixes import fix
from einfuse.ir import Span

pytestmark = pytest.mark.slow


def is_inside(text: str, span: Span) -> bool:
    """Does a span begin in the text or right behind it, and end in it?"""
    lines = text.split("\n")
    there = 1 <= span.line <= len(lines) and 1 <= span.column <= len(lines[span.line - 1]) + 1
    return there and names.offset(text, span.line, span.column) + span.length <= len(text) + 1


@given(broken(), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_broken_texts_are_answered(text: str, random: Random) -> None:
    document = Document(text)
    for error in quick_faults(text):
        assert str(error)
        assert error.loc is None or error.loc.file != "<text>" or is_inside(text, error.loc), error
        found = fix(error, text)
        assert found is None or 0 <= found.start <= found.stop <= len(text)
    for x in document.names:
        assert is_inside(text, x.span)
        assert x.target is None or x.target.file != "<text>" or is_inside(text, x.target)
    assert all(is_inside(text, x.span) for x in inside.ranks(document))
    line = random.randrange(text.count("\n") + 1) + 1
    column = random.randrange(len(text.split("\n")[line - 1]) + 1) + 1
    names.references(document.module, line, column) if document.module else None
