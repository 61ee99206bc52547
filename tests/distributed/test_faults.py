"""What devices say when one of them is gone, hangs, or was called differently: all of them, in time, and by name."""

from __future__ import annotations

import re

import pytest
from processes import Pool, pool
from work import called

SIZE, ODD = 3, 1
SURVIVORS = [r for r in range(SIZE) if r != ODD]


def test_another_spec_is_found_before_anything_is_exchanged(devices: Pool) -> None:
    for message in devices.run(called, odd=ODD, does="other", timeout=20.0):
        assert re.match(
            r"ExchangeError: \w+: device \d of `seq` was called with another spec, dtypes or gradients than \d", message
        )


def test_sizes_that_do_not_fit_are_the_same_message_everywhere(devices: Pool) -> None:
    found = devices.run(called, odd=ODD, does="short", timeout=20.0)
    assert set(found) == {"ValueError: causal: devices hold [3, 2, 3] entries of Nk in k, and [3, 3, 3] in v"}


@pytest.mark.parametrize("does", ["die", "hang"])
def test_survivors_say_what_did_not_take_place(does: str) -> None:
    devices = pool(SIZE)
    try:
        devices.start(called, odd=ODD, does=does, timeout=2.0)
        for rank in SURVIVORS:
            message = devices.result(rank)
            assert re.match(
                r"ExchangeError: the sizes of causal with device \d of 3 did not take place \(step 1\): .+", message
            )
    finally:
        devices.close()
