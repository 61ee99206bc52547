"""The bounded mapping: what it keeps, in which order, and that threads get values."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from einfuse.runtime.recent import Recent


def test_what_was_used_longest_ago_makes_room() -> None:
    held: Recent[str, int] = Recent(3)
    for n, key in enumerate("abc"):
        held[key] = n
    assert held["a"] == 0  # a use
    assert "b" in held  # none
    assert held.made("d", lambda: 3) == 3
    assert list(held) == ["c", "a", "d"]
    assert held.get("b") is None
    held["c"] = 7
    held["e"] = 8
    assert dict(held) == {"d": 3, "c": 7, "e": 8}
    del held["d"]
    assert len(held) == 2
    with pytest.raises(KeyError):
        held["d"]


def test_none_is_a_value() -> None:
    held: Recent[str, None] = Recent()
    assert held.made("a", lambda: None) is None
    assert held.made("a", lambda: pytest.fail("made again")) is None


def test_a_value_that_cannot_be_made_is_not_there() -> None:
    held: Recent[str, int] = Recent()
    with pytest.raises(ZeroDivisionError):
        held.made("a", lambda: 1 // 0)
    assert held.made("a", lambda: 1) == 1


def test_threads_share_one_value() -> None:
    """All get the one that came first, however many made one, and keys that come and go raise nothing."""
    held: Recent[int, object] = Recent(4)

    def made() -> object:
        time.sleep(0.01)
        return object()

    with ThreadPoolExecutor(8) as pool:
        assert len({id(x) for x in pool.map(lambda _: held.made(0, made), range(8))}) == 1
        found = list(pool.map(lambda n: held.made(n % 9, lambda: n % 9) == n % 9 or n % 9 == 0, range(2000)))
    assert all(found)
    assert len(held) == 4
