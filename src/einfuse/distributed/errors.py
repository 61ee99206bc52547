"""What can go wrong between devices."""

from __future__ import annotations

from einfuse.ir import EinfuseError


class ExchangeError(EinfuseError):
    """An exchange that did not take place: which one, with whom, at which step. Nothing was written."""
