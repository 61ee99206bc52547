"""The calls that benchmarks/gpu_static.py looks at: a spec of the library and its arguments (never written, so they take no memory)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

Arguments = dict[str, torch.Tensor]
BATCH, HEADS, LENGTH, PAGE = 4, 16, 4096, 16


@dataclass(frozen=True, slots=True)
class Case:
    """A call of ``spec`` with ``numbers``: ``queries`` on ``keys`` with ``groups`` heads of keys and values, and what else it takes."""

    spec: str
    queries: int = LENGTH
    keys: int = LENGTH
    groups: int = HEADS
    backward: bool = True
    more: Callable[[Case, int], Arguments] = lambda case, width: {}
    numbers: Mapping[str, int] = field(default_factory=dict)

    def arguments(self, width: int) -> Arguments:
        found = {
            "q": _empty(BATCH, HEADS, self.queries, width),
            "k": _empty(BATCH, self.groups, self.keys, width),
            "v": _empty(BATCH, self.groups, self.keys, width),
        }
        return found | self.more(self, width)

    def pairs(self) -> float:
        """Live pairs of one head of the masks that the specs have, for FLOPs."""
        n, m = self.queries, self.keys
        causal = n * m - n * (n - 1) / 2
        if self.spec == "sliding_window":
            return n * 256 - 256 * 255 / 2
        if "best" in self.numbers:
            listed = self.numbers["best"] * self.numbers["block"]
            return n * listed - listed * (listed - 1) / 2
        if self.spec == "document":
            return 8 * (n / 8) * (n / 8 + 1) / 2
        return n * m if self.spec == "full" else causal


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


def _slopes(case: Case, width: int) -> Arguments:
    return {"slope": 2.0 ** (-8.0 * torch.arange(1, HEADS + 1) / HEADS)}


def _documents(case: Case, width: int) -> Arguments:
    return {"doc": (torch.arange(case.keys) * 8 // case.keys).expand(BATCH, case.keys).contiguous()}


def _pages(case: Case, width: int) -> Arguments:
    count = case.keys // PAGE
    made = {x: _empty(BATCH * count, PAGE, case.groups, width) for x in "kv"}
    page = torch.arange(BATCH * count).view(BATCH, count)
    return {**made, "page": page, "length": torch.full((BATCH,), case.keys)}


def _gates(*names: str) -> Callable[[Case, int], Arguments]:
    """Extra inputs of scans: ``g`` per feature where it is written ``g d``."""
    return lambda case, width: {n.split()[0]: _empty(BATCH, HEADS, case.keys, *([width] if " " in n else [])) for n in names}


def _summaries(case: Case, width: int) -> Arguments:
    """Groups of heads that choose blocks together, and the summaries that they choose by."""
    stride, span = case.numbers["stride"], case.numbers["span"]
    q = _empty(BATCH, case.groups, HEADS // case.groups, case.queries, width)
    return {"q": q, "c": _empty(BATCH, case.groups, (case.keys - span) // stride + 1, width)}


NATIVE = {"best": 16, "stride": 16, "span": 32, "block": 64, "near": 2}

CASES: Mapping[str, Case] = {
    "full": Case("full"),
    "causal": Case("causal"),
    "window 256": Case("sliding_window"),
    "alibi": Case("alibi", more=_slopes),
    "softcap": Case("softcap"),
    "document": Case("document", more=_documents),
    "sigmoid": Case("sigmoid"),
    "rope": Case("rope"),
    "gqa 16/4": Case("gqa", groups=4),
    "decode 16k": Case("gqa", queries=1, keys=16384, backward=False),
    "decode 16k gqa": Case("gqa", queries=1, keys=16384, groups=4, backward=False),
    "paged decode 8k": Case("paged", queries=1, keys=8192, groups=4, backward=False, more=_pages),
    "paged prefill": Case("paged", groups=4, backward=False, more=_pages),
    "native sparse": Case("nsa_selected", groups=1, more=_summaries, numbers=NATIVE),
    "retention": Case("retention", more=_slopes),
    "gla": Case("gla", more=_gates("g d")),
    "delta": Case("delta", more=_gates("beta")),
    "gated_delta": Case("gated_delta", more=_gates("g", "beta")),
}
