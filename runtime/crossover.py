"""Which form of an attention is less work at a shape: a model of the time of each, calibrated once per device.

    time(form) = kernels * launch(kind) + work(form) / rate(kind)

Work is counted on the kernels' own plans (`codegen.cost`). A *kind* is how a form runs: ``quadratic``, or what `ir.passes.factorisation` calls
the linear one (``flat sums``). Its speed depends on the device, the dtype and the width of a feature, and on whether gradients follow.
It is measured with a small and a large call the first time that two forms are near each other, and kept in the cache folder; until then
`LAUNCH` and `RATES` stand in.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from einfuse import _files as files
from einfuse.codegen import KernelPlan
from einfuse.codegen.cost import cost, scan_work, weighted
from einfuse.codegen.scan import ScanPlan
from einfuse.runtime import cache

LAUNCH = 2e-5
"""Seconds to start one kernel, with what Python and torch do around it."""
RATES = {"quadratic": 1.0, "sums": 0.6, "flat sums": 1.0, "scan": 0.35, "flat scan": 0.5}
"""Rates that are not measured, as shares of `PEAK`: only their ratios decide."""
PEAK = {"cpu": 1e11, "cuda": 2e14}
NEAR = 6.0
"""Times closer than this factor are measured; what is further apart no calibration would turn round."""
NARROW, WIDE = 16, 128
"""The widths of features that rates are measured between, at powers of two: products of narrower blocks do less at a time."""
MOST = 200
"""Repeats of a call that is timed."""
WORTH = 2e-3
"""Seconds below which the choice is not worth a measurement."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What rates depend on beside the kind."""

    device: str
    dtype: str
    training: bool
    width: int

    @staticmethod
    def of(x: torch.Tensor, training: bool, width: int) -> Setting:
        """The setting of calls with tensors like ``x`` whose features have about this ``width``."""
        cpu = f"{torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
        name = torch.cuda.get_device_name(x.device) if x.is_cuda else cpu
        nearest = 2 ** round(math.log2(min(max(width, NARROW), WIDE)))
        return Setting(name, str(x.dtype).removeprefix("torch."), training, nearest)

    def key(self, kind: str) -> str:
        return cache.key("rate", kind, self.device, self.dtype, self.training, self.width)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of one call by each form."""

    quadratic: float
    linear: float

    @property
    def near(self) -> bool:
        """Would a wrong rate change the choice, and does the choice matter?"""
        low, high = sorted((self.quadratic, self.linear))
        return high < NEAR * low and high > WORTH


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds to start a kernel, and the work it then does in one (`codegen.cost.weighted`)."""

    launch: float
    rate: float

    def seconds(self, kernels: int, work: float) -> float:
        return kernels * self.launch + work / self.rate

    @staticmethod
    def of(kernels: int, small: tuple[float, float], large: tuple[float, float]) -> Speed:
        """The speed that explains two calls of this many kernels: their work, and the seconds they took."""
        (less, soon), (more, late) = small, large
        rate = (more - less) / max(late - soon, 1e-9)
        return Speed(max(soon - less / rate, 0.0) / kernels, rate)


def work(plans: list[KernelPlan] | list[ScanPlan], sizes: Mapping[str, int], live: float) -> float:
    """The work of the kernels of one form; ``live`` is the share of the pairs under the mask."""
    total = 0.0
    for plan in plans:
        if isinstance(plan, ScanPlan):
            total += weighted(scan_work(plan, sizes))
        else:
            folds = {s.rank: live for s in plan.folds}
            total += weighted(cost(plan, sizes, {}, folds).work)
    return total


def speed(kind: str, setting: Setting, device: torch.device) -> Speed:
    """The speed that was measured for this kind, or the one that stands in."""
    return known(kind, setting) or Speed(LAUNCH, RATES[kind] * PEAK.get(device.type, PEAK["cuda"]))


def known(kind: str, setting: Setting) -> Speed | None:
    """The measured speed, if there is one."""
    body = files.read(_path(kind, setting))
    if body is None:
        return None  # not measured yet
    found = json.loads(body)
    return Speed(float(found["launch"]), float(found["rate"]))


def keep(kind: str, setting: Setting, found: Speed) -> None:
    """Remembers a measured speed on disk, where that can be written."""
    about = {**asdict(found), "kind": kind, **asdict(setting)}
    files.keep(_path(kind, setting), json.dumps(about).encode())


def _path(kind: str, setting: Setting) -> Path:
    return cache.folder() / "rate" / f"{setting.key(kind)}.json"


def timed(run: Callable[[], object], device: torch.device, repeats: int = 7, enough: float = 0.15) -> float:
    """The least time of ``run``, over ``enough`` seconds and after two calls that warm up: what else a machine does only adds to it."""
    for _ in range(2):
        run()
    taken: list[float] = []
    while len(taken) < repeats or (sum(taken) < enough and len(taken) < MOST):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
