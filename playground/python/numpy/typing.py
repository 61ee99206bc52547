"""The one name that annotations use."""

from __future__ import annotations

from typing import Any


class NDArray:
    """An array, of whatever elements."""

    def __class_getitem__(cls, of: Any) -> type[NDArray]:
        return cls
