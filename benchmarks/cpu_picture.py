"""The picture of what benchmarks/cpu.py measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpu import Row


def draw(rows: Sequence[Row], limits: dict[str, float], path: Path) -> None:
    """How many times faster than each peer, by variant; one panel a dtype."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dtypes = list(dict.fromkeys(r.dtype for r in rows))
    most = max([1, *(sum(r.dtype == d for r in rows) for d in dtypes)])
    size = (max(9.0, 0.55 * most), 3.2 * max(1, len(dtypes)))
    figure, panels = plt.subplots(len(dtypes), 1, figsize=size, squeeze=False)
    for (panel,), dtype in zip(panels, dtypes, strict=True):
        mine = [r for r in rows if r.dtype == dtype]
        peers = list(dict.fromkeys(n for r in mine for n in r.ratio))
        for k, peer in enumerate(peers):
            at = [n + 0.8 * (k - (len(peers) - 1) / 2) / max(1, len(peers)) for n in range(len(mine))]
            panel.bar(at, [r.ratio.get(peer, 0.0) for r in mine], 0.8 / max(1, len(peers)), label=peer)
        panel.axhline(1.0, color="black", linewidth=0.8)
        panel.set_yscale("log")
        labels = [
            f"{r.variant.replace(' ', chr(10))}{chr(10) + 'fwd+bwd' if 'back' in r.direction else ''}\n{r.length}x{r.width}\n{r.of_peak:.0%}"
            for r in mine
        ]
        panel.set_xticks(range(len(mine)), labels, fontsize=7)
        panel.set_ylabel("times faster than")
        panel.set_title(
            f"{dtype}: peak {limits['bf16' if dtype == 'bfloat16' else 'f32']:.0f} GFLOP/s, share of it below each name",
            fontsize=9,
        )
        if peers:
            panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
