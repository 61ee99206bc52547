"""`scan` in the language: what it elaborates to, and what it says when it is wrong."""

from __future__ import annotations

import pytest

from einfuse import dsl
from einfuse.ir import Einsum, Fold, SpecError, State
from einfuse.ir.text import parse, show
from einfuse.ir.verify import verify

HEAD = """attention f over b, h {
  rank i: query = N; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, i, d]
  in v[b, h, i, e]
  in start[b, h, d, e] optional
"""


def text(*lines: str) -> str:
    return HEAD + "".join(f"  {x}\n" for x in lines) + "}\n"


def test_a_state_is_read_before_and_after_its_line() -> None:
    source = text(
        "scan i {", "  a = sum[d](q * S)", "  state S[d, e] = S + k * v", "  o = sum[d](q * S)", "}", "y = o - a", "out y, S"
    )
    c = verify(dsl.compile_text(source))
    fold = c.body[0]
    assert isinstance(fold, Fold)
    assert fold.sequential
    assert [(type(y), y.target) for y in fold.body] == [(Einsum, "a"), (State, "S"), (Einsum, "o")]
    assert fold.body[0].map == fold.body[2].map, "the same reads, of two values: they must not be merged into one statement"
    assert parse(show(c)) == c


def test_an_initial_value_may_be_optional() -> None:
    source = text(
        "scan i {", "  state S[d, e] = S + k * v from start if given(start) else 0", "  o = sum[d](q * S)", "}", "out o"
    )
    for given, expected in ((set(), False), ({"start"}, True)):
        fold = dsl.compile_text(source, given=given).body[0]
        assert isinstance(fold, Fold)
        state = fold.states[0]
        assert (state.init is not None) == expected
        assert parse(show(dsl.compile_text(source, given=given))).body[0] == fold


def test_formatting_keeps_a_scan() -> None:
    source = text(
        "scan i {", "  state S[d, e] = S + k * v from start if given(start) else 0", "  o = sum[d](q * S)", "}", "out o"
    )
    assert dsl.format_text(source.replace("\n    ", " ")) == dsl.format_text(source)
    assert dsl.parse(dsl.format_text(source)) == dsl.parse(source)


@pytest.mark.parametrize(
    ("lines", "message", "place"),
    [
        (("scan i {", "  o = q * 2", "}", "out o"), "a scan without a state carries nothing", (7, 3)),
        (("scan h {", "  state S[d] = S + q", "}", "out S"), "`h` is ambient", (7, 8)),
        (("scan i {", "  state S[i, d] = S + q", "}", "out S"), "keeps the rank `i` that the scan goes along", (8, 13)),
        (("scan i {", "  state S[d, d] = S + q", "}", "out S"), "the rank `d` stands twice in the state", (8, 16)),
        (("scan i {", "  state S[b, d] = S + q", "}", "out S"), "`b` is ambient: every state has it", (8, 13)),
        (
            ("scan i {", "  state S[d] = S + q from v", "}", "out S"),
            "the initial value of the state `S` has the rank `i`",
            (8, 29),
        ),
        (("scan i {", "  state S[d] = S > 0", "}", "out S"), "the value of the state `S` is a condition", (8, 18)),
        (("scan i {", "  state S[e] = S + sum[i](v)", "}", "out S"), "the scanned rank `i` cannot be reduced over", (8, 5)),
        (("scan i {", "  state S[e] = S + v", "  state S[e] = S", "}", "out S"), "`S` is declared twice", (9, 11)),
        (("m = v where i > 0", "scan i {", "  state S[e] = S + m", "}", "out S"), "does not exist everywhere", (9, 18)),
        (("scan i {", "  3", "}", "out S"), "expected `state`, a statement or `}`", (8, 5)),
    ],
)
def test_faults(lines: tuple[str, ...], message: str, place: tuple[int, int]) -> None:
    with pytest.raises(SpecError) as caught:
        dsl.compile_text(text(*lines))
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == place
