"""What the kernels of a scan are for who runs them, on every back end."""

from __future__ import annotations

from typing import Protocol

from einfuse.codegen.plan.scan import ScanPlan


class Piece(Protocol):
    """One of the kernels that a scan runs in turn; ``smaller`` gives those to take instead where it spills registers."""

    @property
    def plan(self) -> ScanPlan: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> dict[str, int]: ...
    def smaller(self) -> tuple[Piece, ...]: ...
