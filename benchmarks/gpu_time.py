"""Times on a device: ours and each peer in turns, medians and spread, by the device's own clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import gpu_peers
import gpu_workers
import harness
import torch

import einfuse
from einfuse.codegen.triton.build import TritonKernel

Shape = tuple[int, int, int, int]
Run = Callable[[], Any]
SHAPES: tuple[Shape, ...] = ((4, 16, 4096, 64), (4, 16, 4096, 128), (1, 16, 16384, 128))
FIRST = ("causal", "full", "alibi", "sliding_window", "softcap", "document")
"""The variants that are timed at every shape."""
DECODES = ((16, 16384), (4, 16384))
SCANS = ("retention", "gla", "delta", "gated_delta")
CHOSEN = (8192, 16384, 32768)
REPEATS = 15
SECONDS = 100.0  # for one measurement, compilers included
AHEAD = 10_000_000  # cycles that the device is kept busy while the host puts work in its queue: about 5 ms
NONE = float("nan")


@dataclass(frozen=True, slots=True)
class Time:
    """``ratio`` = the peer's time / ours (above 1: ours is faster); ``spread`` = between its quartiles; ``rate`` and ``peer_rate`` in ``unit``.

    ``kernels``: milliseconds of each of ours in one run.
    """

    variant: str
    direction: str
    dtype: str
    shape: str
    peer: str
    milliseconds: float
    rate: float
    peer_rate: float
    ratio: float
    spread: float
    remark: str = ""
    unit: str = "TFLOP/s"
    kernels: Mapping[str, float] | None = None


def tasks(names: Sequence[str], warm: bool = False) -> list[gpu_workers.Task]:
    """Every measurement, the plainest first; ``warm`` ones compile what these run and time nothing."""
    kinds = [v.name for v in gpu_peers.VARIANTS if v.name in names]
    some = [n for n in kinds if n in FIRST]
    scans = [n for n in SCANS if n in names]
    small, wide, long = SHAPES
    ordered: list[tuple[Any, ...]] = [("attention", n, shape, "bfloat16") for shape in (small, wide) for n in some]
    ordered += [("decode", *x) for x in DECODES if "gqa" in names]
    ordered += [("scan", n, shape, False) for shape in (wide, small) for n in scans]
    ordered += [("chosen", n) for n in CHOSEN if "moba" in names]
    ordered += [("host", n) for n in ("causal", "document", "retention") if n in names]
    ordered += [("attention", n, small, "float32") for n in some[:1]]
    ordered += [("scan", n, wide, True) for n in scans if gpu_peers.has_fla()]
    ordered += [("attention", n, long, "bfloat16") for n in some]
    ordered += [("attention", n, small, "bfloat16") for n in kinds if n not in some]
    return [gpu_workers.Task(f"gpu_time:{name}", (*arguments, warm), SECONDS) for name, *arguments in ordered]


def time_all(names: Sequence[str], deadline: float, note: Callable[[str], None]) -> tuple[list[Time], list[str]]:
    """Everything the deadline allows; then what was left out, and what failed with its reason."""
    times: list[Time] = []
    left: list[str] = []

    def said(answer: gpu_workers.Answer) -> None:
        note(f"timed {label(answer.task)} {answer.error}")

    for answer in gpu_workers.run(tasks(names), 1, deadline, said):
        if answer.reached and not answer.error:
            times += [Time(**t) for t in answer.value]
        else:
            left.append(f"{label(answer.task)} {answer.error}".strip())
    return times, left


def label(task: gpu_workers.Task) -> str:
    """What a measurement is of."""
    said = (_label(x) if isinstance(x, list | tuple) else str(x) for x in task.arguments[:-1])
    return " ".join((task.function.removeprefix("gpu_time:"), *said))


# -- measurements ----------------------------------------------------------------------------------------------------------------


def attention(name: str, shape: Shape, dtype: str, warm: bool, device: str = "cuda") -> list[dict[str, Any]]:
    """A variant of attention beside what torch has for it, forward and backward: TFLOP/s of the pairs that the mask leaves."""
    (variant,) = (v for v in gpu_peers.VARIANTS if v.name == name)
    b, h, n, d = shape
    x = gpu_peers.inputs(variant, b, h, n, d, getattr(torch, dtype), device)
    ours = einfuse.compile(name, backend="triton")
    pairs = 0 if warm else gpu_peers.live_pairs(variant, x)
    out = []
    for peer, theirs in gpu_peers.peers(variant, x, compiled=device == "cuda").items():
        try:
            remark = agreement(ours(**x), theirs())
        except RuntimeError as error:  # a back end that this device, build or shape does not have
            none = Time(name, "forward", dtype, _label(shape), peer, NONE, NONE, NONE, NONE, NONE, f" (none: {error})"[:200])
            out.append(asdict(none))
            continue
        for direction, products in (("forward", 2), ("backward", 5)):
            work = products * 2 * d * pairs / 1e9  # GFLOP: over milliseconds it is TFLOP/s
            leaves = [x["q"], x["k"], x["v"]] if direction == "backward" else []
            what = (name, direction, dtype, _label(shape), peer)
            out += beside(what, lambda: ours(**x), theirs, leaves, work, warm, remark, alone=not out)
    torch._dynamo.reset()
    return out


def decode(groups: int, keys: int, warm: bool) -> list[dict[str, Any]]:
    """One query of 16 heads on many keys beside torch's kernels: TB/s of the keys and values."""
    b, h, d = 4, 16, 128
    q = torch.randn(b, h, 1, d, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(b, groups, keys, d, device="cuda", dtype=torch.bfloat16) for _ in "kv")
    ours = einfuse.compile("gqa", backend="triton")
    out: list[dict[str, Any]] = []
    for peer, theirs in gpu_peers.decoders(q, k, v).items():
        what = ("gqa", "decode", "bfloat16", f"B{b} H{h}/{groups} S{keys} D{d}", peer)
        with torch.no_grad():
            remark = agreement(ours(q=q, k=k, v=v), theirs())
            moved = 2 * k.numel() * k.element_size() / 1e9  # GB: over milliseconds it is TB/s
            out += beside(what, lambda: ours(q=q, k=k, v=v), theirs, [], moved, warm, remark, unit="TB/s", alone=not out)
    torch._dynamo.reset()
    return out


def scan(name: str, shape: Shape, with_fla: bool, warm: bool) -> list[dict[str, Any]]:
    """A recurrence, alone or beside flash-linear-attention's chunked kernels: million tokens a second."""
    b, h, n, d = shape
    x = gpu_peers.scanned(name, b, h, n, d)
    ours = einfuse.compile(name, backend="triton")
    leaves = [t for t in x.values() if t.requires_grad]
    mine, theirs = gpu_peers.turned(x), gpu_peers.fla(name, x) if with_fla else None

    def run() -> torch.Tensor:
        """Without the state, which is an output, too."""
        out: torch.Tensor = ours(**mine)[0]
        return out.transpose(1, 2)

    remark = agreement(run(), theirs()) if theirs else ""
    out = []
    for direction in ("forward", "backward"):
        what = (name, direction, "bfloat16", _label(shape), "fla" if theirs else "nothing")
        grads = leaves if direction == "backward" else []
        out += beside(what, run, theirs, grads, b * n / 1e3, warm, remark, unit="M tokens/s")
    return out


def chosen(tokens: int, warm: bool) -> list[dict[str, Any]]:
    """Attention that reads 16 chosen blocks of 64 keys (``moba``) beside our own causal attention over all, 16 heads on 4."""
    b, h, g, d = 1, 16, 4, 64
    shapes = {"q": h, "k": g, "v": g}
    x = {n: torch.randn(b, m, tokens, d, device="cuda", dtype=torch.bfloat16).requires_grad_() for n, m in shapes.items()}
    ours, causal = (
        einfuse.compile("moba", backend="triton", block=64, best=16),
        einfuse.compile("causal", backend="triton"),
    )
    out = []
    for direction in ("forward", "backward"):
        what = ("moba", direction, "bfloat16", f"B{b} H{h}/{g} S{tokens} D{d}", "our causal")
        grads = list(x.values()) if direction == "backward" else []
        out += beside(what, lambda: ours(**x), lambda: causal(**x), grads, b * tokens / 1e3, warm, unit="M tokens/s")
    return out


def host(name: str, warm: bool) -> list[dict[str, Any]]:
    """Calls so small that the host is what is waited for: microseconds of host time a call, forward alone and a training step."""
    b, h, n, d = 1, 2, 64, 64
    if name in SCANS:
        x = gpu_peers.turned(gpu_peers.scanned(name, b, h, n, d))
    else:
        (variant,) = (v for v in gpu_peers.VARIANTS if v.name == name)
        x = gpu_peers.inputs(variant, b, h, n, d, torch.bfloat16, "cuda")
    ours = einfuse.compile(name, backend="triton")
    leaves = [t for t in x.values() if t.requires_grad]

    def forward() -> Any:
        out = ours(**x)
        return out[0] if isinstance(out, tuple) else out

    def step() -> None:
        out = forward()
        torch.autograd.grad(out, leaves, out)

    out = []
    for direction, run in (("call", torch.no_grad()(forward)), ("training step", step)):
        found = []
        for _ in range(3 if warm else 60):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(10):
                run()
            found.append((time.perf_counter() - begin) * 100)  # ms of ten, in ms each
        torch.cuda.synchronize()
        middle = statistics.median(found) if not warm else NONE
        what = (name, f"host, {direction}", "bfloat16", _label((b, h, n, d)), "nothing")
        out.append(asdict(Time(*what, middle, 1 / middle, NONE, NONE, NONE, unit="calls/ms")))
    return out


# -- clocks ----------------------------------------------------------------------------------------------------------------------


def beside(
    what: tuple[str, str, str, str, str],
    ours: Run,
    theirs: Run | None,
    leaves: Sequence[torch.Tensor],
    work: float,
    warm: bool,
    remark: str = "",
    unit: str = "TFLOP/s",
    alone: bool = True,
) -> list[dict[str, Any]]:
    """The time of ours in turns with theirs, of the backward alone where there are leaves; with ``alone``, also of each kernel of ours."""
    runs = {n: prepared(fn, leaves) for n, fn in (("ours", ours), ("theirs", theirs)) if fn is not None}
    for run in runs.values():
        for _ in range(3):
            run()
    if warm:
        torch.cuda.synchronize()
        return []
    found = harness.turns(runs, REPEATS, skipped=0, measure=_milliseconds)
    mine = statistics.median(found["ours"])
    kernels = kernels_of(runs["ours"]) if alone else None
    if theirs is None:
        return [asdict(Time(*what, mine, work / mine, NONE, NONE, NONE, remark, unit, kernels))]
    ratio = harness.spread([t / o for o, t in zip(*found.values(), strict=True)])
    numbers = (mine, work / mine, work / statistics.median(found["theirs"]), ratio.median, ratio.width)
    return [asdict(Time(*what, *numbers, remark, unit, kernels))]


def prepared(fn: Run, leaves: Sequence[torch.Tensor]) -> Run:
    """What is timed: the call, or with leaves its backward alone."""
    if not leaves:
        return torch.no_grad()(fn)
    o = fn()
    direction = torch.randn_like(o)
    return lambda: torch.autograd.grad(o, leaves, direction, retain_graph=True)


def agreement(ours: Any, theirs: torch.Tensor) -> str:
    """A remark where the two do not compute the same thing."""
    difference = (ours.float() - theirs.float()).norm() / theirs.float().norm()
    return "" if difference < 0.02 else f" (OUTPUTS DIFFER by {difference:.1%})"


def _milliseconds(run: Run) -> float:
    """One run by the device's own clock, queued behind enough work that the host is never waited for."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(AHEAD)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def kernels_of(run: Run) -> dict[str, float] | None:
    """The medians of each kernel's own time over a few runs, by name."""
    if not torch.cuda.is_available():
        return None
    marks: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
    launch = TritonKernel.__call__

    def marked(kernel: TritonKernel, *args: Any, **options: Any) -> int:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        found = launch(kernel, *args, **options)
        end.record()
        marks.append((kernel.plan.name, start, end))
        return found

    with mock.patch.object(TritonKernel, "__call__", marked):
        for _ in range(5):
            torch.cuda._sleep(AHEAD)
            run()
            torch.cuda.synchronize()
    found: dict[str, list[float]] = {}
    for name, start, end in marks:
        found.setdefault(name, []).append(start.elapsed_time(end))
    return {name: statistics.median(ms) * len(ms) / 5 for name, ms in found.items()}


def _label(shape: Sequence[int]) -> str:
    return "B{} H{} S{} D{}".format(*shape)
