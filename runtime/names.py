"""The names of back ends, which the command line offers without torch."""

from __future__ import annotations

from typing import Literal, get_args

BackendName = Literal["cpu", "triton", "torch", "loops", "pallas"]
NAMES: tuple[BackendName, ...] = get_args(BackendName)
