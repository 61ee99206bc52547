"""JSON on stdout: what needs no library to be shown."""

from __future__ import annotations

import json
import math
from typing import TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


def report(value: Json) -> None:
    """One JSON object on stdout. A number that is not finite becomes null: JSON has no other word for it."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Json) -> Json:
    match value:
        case dict():
            return {k: _finite(v) for k, v in value.items()}
        case list():
            return [_finite(v) for v in value]
        case float() if not math.isfinite(value):
            return None
        case _:
            return value
