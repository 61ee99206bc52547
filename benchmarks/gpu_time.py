"""Times on a device: ours and each peer in turns, medians and spread, TFLOP/s of the pairs that the mask leaves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gpu_peers
import torch

import einfuse

SHAPES = ((4, 16, 4096, 64), (4, 16, 4096, 128), (1, 16, 16384, 128))
REPEATS = 15
ROOM = 20.0  # seconds that must be left for another measurement to be begun


@dataclass(frozen=True, slots=True)
class Time:
    """``ratio`` = the peer's time / ours (above 1: ours is faster); ``spread`` = between its quartiles; ``tflops`` = ours."""

    variant: str
    direction: str
    dtype: str
    shape: str
    peer: str
    milliseconds: float
    tflops: float
    peer_tflops: float
    ratio: float
    spread: float
    remark: str = ""


def time_all(
    names: Sequence[str], deadline: float, note: Callable[[str], None], device: str = "cuda"
) -> tuple[list[Time], list[str]]:
    """Everything the deadline allows, the plainest variants and shapes first; then the names of what was left out."""
    times: list[Time] = []
    unreached: list[str] = []
    for shape in SHAPES:
        for variant in (v for v in gpu_peers.VARIANTS if v.name in names):
            label = f"{variant.name} B{shape[0]} H{shape[1]} S{shape[2]} D{shape[3]}"
            if time.monotonic() > deadline - ROOM:
                unreached.append(label)
                continue
            note(f"timing {label}")
            times += time_variant(variant, shape, deadline, device)
            torch._dynamo.reset()
            torch.cuda.empty_cache()
    return times, unreached


def time_variant(variant: gpu_peers.Variant, shape: tuple[int, int, int, int], deadline: float, device: str) -> list[Time]:
    b, h, n, d = shape
    x = gpu_peers.inputs(variant, b, h, n, d, torch.bfloat16, device)
    attention = einfuse.compile(variant.name, backend="triton")
    pairs = gpu_peers.live_pairs(variant, x)
    out = []
    for name, peer in gpu_peers.peers(variant, x, compiled=device == "cuda").items():
        if time.monotonic() > deadline - ROOM:
            break
        try:
            remark = agreement(attention(**x), peer())
        except RuntimeError as error:  # a back end that this device, build or shape does not have
            out.append(
                Time(variant.name, "forward", "bfloat16", _label(shape), name, *[float("nan")] * 5, f" (none: {error})"[:200])
            )
            continue
        for direction, products in (("forward", 2), ("backward", 5)):
            ours, theirs = both(lambda: attention(**x), peer, [x["q"], x["k"], x["v"]], direction == "backward")
            work = products * 2 * d * pairs / 1e9  # GFLOP: over milliseconds it is TFLOP/s
            ratios = [t / o for o, t in zip(ours, theirs, strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)
            mine, other = statistics.median(ours), statistics.median(theirs)
            found = (mine, work / mine, work / other, statistics.median(ratios), quartiles[2] - quartiles[0])
            out.append(Time(variant.name, direction, "bfloat16", _label(shape), name, *found, remark))
    return out


def agreement(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    """A remark where the two do not compute the same thing."""
    difference = (ours.float() - theirs.float()).norm() / theirs.float().norm()
    return "" if difference < 0.02 else f" (OUTPUTS DIFFER by {difference:.1%})"


def both(
    ours: Callable[[], torch.Tensor], theirs: Callable[[], torch.Tensor], leaves: list[torch.Tensor], backward: bool
) -> tuple[list[float], list[float]]:
    """Milliseconds of the two, in turns; of the backward alone where it is asked for."""
    runs = []
    for fn in (ours, theirs):
        if not backward:
            runs.append(torch.no_grad()(fn))
            continue
        o = fn()
        direction = torch.randn_like(o)
        runs.append(lambda o=o, direction=direction: torch.autograd.grad(o, leaves, direction, retain_graph=True))
    for run in runs:
        for _ in range(3):
            run()
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for run, into in zip(runs, found, strict=True):
            into.append(_milliseconds(run))
    return found


def _milliseconds(run: Callable[[], object]) -> float:
    """One run by the device's own clock, queued behind enough work that the host is never waited for."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(1_000_000)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _label(shape: tuple[int, int, int, int]) -> str:
    return "B{} H{} S{} D{}".format(*shape)
