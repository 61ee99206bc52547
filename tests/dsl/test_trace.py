"""What cannot be traced is refused in the same words by the decorators and by `einfuse.flex`: with the user's line, and a way out."""

from __future__ import annotations

import linecache
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from einfuse import SpecError, dsl
from einfuse.dsl.trace import here
from einfuse.flex import flex_attention

X = torch.zeros(1, 1, 4, 8)
TABLE = torch.zeros(4)
LIST, ARRAY, PLACES = [1.0, 2.0], np.zeros(4), {0: 1.0}
COUNT = 0
KEPT: torch.Tensor | None = None
FRONTS: dict[str, Callable[..., Any]] = {
    "einfuse": lambda fn: dsl.attention(fn),
    "torch": lambda fn: flex_attention(X, X, X, fn, kernel_options={"backend": "torch"}),
}
"""By the library whose functions compute with traced numbers."""


def branch(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s if i > j else s * 2


def statement(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    if i > j:
        return s
    return s * 2


def both(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * (i > 1 and j > 1)


def negated(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * (not i)


def chain(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * (0 < i < j)


def smallest(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * min(i, j)


def member(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * (i in (1, 2))


def repeat(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + sum(1 for _ in range(i))


def iterate(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return sum(x for x in s)


def long(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * len(i)


def as_float(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + float(i)


def as_int(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + int(i / 2)


def rounded(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + round(i / 2)


def with_math(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * math.sin(i)


def list_index(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * LIST[i]


def array_index(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * ARRAY[i]


def array(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * ARRAY


def left_array(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return ARRAY * s


def dictionary(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * PLACES[i]


def score_index(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s[i]


def numpy_function(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return np.where(i > j, s, 0)


def numpy_unknown(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return np.arctan2(s, 2)


def unknown(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return torch.cumsum(s, 0)


def method(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s.cumsum(0)


def in_place(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s.mul_(2)


def table_written(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    TABLE.add_(1)
    return s


def part_assigned(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    s[0] = 1
    return s


def text(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s + "1"


def nothing(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    s + 1


def pair(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s, i


def wrong(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s.exp() + None.exp()  # type: ignore[attr-defined]  # what a user would write by mistake


def zero(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * (1 / COUNT)


def few(s: Any, i: Any, j: Any) -> Any:
    return s


def mask(b: Any, h: Any, i: Any, j: Any) -> Any:
    return i > j


def large(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    for _ in range(40):
        s = s * s
    return s


def drawn(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return s * random.random()


def counted() -> Callable[..., Any]:
    calls = 0

    def assigned(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        nonlocal calls
        calls = 1
        return s

    return assigned


def globally(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    global COUNT
    COUNT += 1
    return s


UNKNOWN = "the value of a traced number is not known"
CASES: list[tuple[Callable[..., Any], int, str, str]] = [
    (branch, 1, UNKNOWN, "write {}.where(condition, a, b) instead of if"),
    (statement, 1, UNKNOWN, "write {}.where(condition, a, b) instead of if"),
    (both, 1, UNKNOWN, "& | ~ instead of and, or, not"),
    (negated, 1, UNKNOWN, "& | ~ instead of and, or, not"),
    (chain, 1, UNKNOWN, "(a < b) & (b < c) instead of a < b < c"),
    (smallest, 1, UNKNOWN, "{}.minimum and maximum instead of min and max"),
    (member, 1, UNKNOWN, "instead of if"),
    (repeat, 1, "a traced number has no value", "a loop needs a number that is known"),
    (iterate, 1, "a traced number cannot be iterated over", "a number has none"),
    (long, 1, "a traced number has no length", "lengths are numbers that the function captures"),
    (as_float, 1, "a traced number has no value", "use the functions of {0} ({0}.exp, ...), not those of math"),
    (as_int, 1, "a traced number has no value", "round it with {}.floor"),
    (rounded, 1, "a traced number has no value", "round it with {}.floor"),
    (with_math, 1, "a traced number has no value", "not those of math"),
    (list_index, 1, "a traced number has no value", "lists"),
    (array_index, 1, "a traced number is no array of numpy", "arrays"),
    (array, 1, "a traced function computes with numbers and tables, found ndarray", "arrays"),
    (left_array, 1, "a traced function computes with numbers and tables, found ndarray", "arrays"),
    (dictionary, 1, "`dictionary` cannot be traced: KeyError", "functions of {} and tables"),
    (score_index, 1, "a traced number cannot be indexed", "arrays"),
    (numpy_function, 1, "`numpy.where` cannot be traced", "use the functions of {}"),
    (numpy_unknown, 1, "`numpy.arctan2` cannot be traced", "use the functions of {}"),
    (unknown, 1, "`cumsum` cannot be traced", ""),
    (method, 1, "`cumsum` cannot be traced", ""),
    (in_place, 1, "`mul_` works in place", "use `mul`"),
    (table_written, 1, "works in place on", "outside of it"),
    (part_assigned, 1, "a traced function cannot assign to parts of a number", "make a new one with {}.where"),
    (text, 1, "a traced function computes with numbers and tables, found str", "tensors"),
    (nothing, 0, "`nothing` returns nothing", "return the new score"),
    (pair, 0, "`pair` returns a tuple", "one number"),
    (wrong, 1, "`wrong` cannot be traced: AttributeError", "functions of {} and tables"),
    (zero, 1, "`zero` cannot be traced: ZeroDivisionError", "functions of {} and tables"),
    (few, 0, "`few` takes 3 arguments", ""),
    (mask, 0, "`mask` takes 4 arguments; this looks like a mask function", ""),
    (large, 2, "this function makes an expression of too many parts", ""),
    (drawn, 0, "`drawn` computes something else each time it is called", "draw a tensor outside of it"),
    (counted(), 2, "`assigned` assigns to the captured variable `calls`", "compute what it needs outside of it"),
    (globally, 2, "`globally` assigns to the captured variable `COUNT`", "compute what it needs outside of it"),
]


@pytest.mark.parametrize("library", FRONTS)
@pytest.mark.parametrize(("fn", "below", "message", "hint"), CASES, ids=[fn.__name__ for fn, *_ in CASES])
def test_what_cannot_be_traced(fn: Callable[..., Any], below: int, message: str, hint: str, library: str) -> None:
    with pytest.raises(SpecError) as caught:
        FRONTS[library](fn)
    error = caught.value
    assert message in error.message
    assert hint.format(library) in error.hint
    assert error.hint, "there is always a way out"
    assert error.loc is not None
    assert error.loc.file == __file__
    assert error.line == fn.__code__.co_firstlineno + below
    assert str(error).splitlines()[1].strip() == linecache.getline(__file__, error.line).strip(), "the user's own line is shown"
    assert COUNT == 0, "what was assigned is put back"


@pytest.mark.parametrize("library", FRONTS)
def test_what_can_be_traced(library: str) -> None:
    """Numbers of numpy on either side, its functions, methods, and the operators that both sides have."""

    def fn(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        s += np.float32(0.5) * s + s * np.float32(2)
        near = (np.int64(2) > i - j) & (i - np.int64(2) < j)
        return near * 1.0 + np.tanh(s).exp() + np.multiply(s, 2) if library == "torch" else np.tanh(s).exp() + np.multiply(s, 2)

    FRONTS[library](fn)


def test_a_table_that_a_function_keeps_in_a_global() -> None:
    global KEPT
    KEPT, x = None, torch.randn(1, 1, 4, 8)

    def kept(s: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
        global KEPT
        if KEPT is None:
            KEPT = torch.arange(4.0)
        return s + KEPT[j]

    found = flex_attention(x, x, x, kept, kernel_options={"backend": "torch"})
    assert KEPT is not None
    wanted = torch.softmax(x @ x.mT / 8**0.5 + torch.arange(4.0), -1) @ x
    torch.testing.assert_close(found, wanted)


def test_the_place_in_the_users_code() -> None:
    """What stands between is skipped: the packages that trace, torch and numpy."""
    found = here()
    assert found is not None
    assert (found.file, found.line) == (__file__, test_the_place_in_the_users_code.__code__.co_firstlineno + 2)
