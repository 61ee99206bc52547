"""Types, names and numbers in the C++ of scans."""

from __future__ import annotations

import math
import re

TYPES = {"float": "T", "int": "long", "bool": "bool"}


def identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def number(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value}L"
    if not math.isfinite(value):
        return f"({'-' if value < 0 else ''}(T)INFINITY)"
    return f"(T){value!r}" if value >= 0 else f"((T){value!r})"
