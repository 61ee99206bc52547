"""Correctness on a device: every kernel of a spec, values and gradients, beside the float64 oracle on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # einfuse need not be installed

import torch

import einfuse
from einfuse.runtime import Attention
from einfuse.runtime.verify import Row, Shape, example_inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = {
    "odd": Shape(),  # no tile divides these
    "even": Shape(batch=1, heads=4, queries=256, keys=256, widths=(64, 64), group=2),
}


def check_all(
    names: Sequence[str], workers: int, deadline: float, note: Callable[[str], None]
) -> tuple[list[Row], list[dict[str, str]], list[str]]:
    """Rows, kernels that raised, and what the deadline left out.

    Compiling takes the time, so specs are spread over processes; each has its own, so that a kernel that hangs or breaks the device's
    context takes nothing else with it.
    """
    rows: list[Row] = []
    failures: list[dict[str, str]] = []
    unreached: list[str] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        futures = {pool.submit(_in_a_process, name, deadline): name for name in names}
        for done, future in enumerate(as_completed(futures), 1):
            found, last_words = future.result()
            reached = {(f["dtype"], f["shape"]) for f in found}
            for f in found:
                if "error" in f:
                    failures.append({"name": futures[future], **f})
                rows += [Row(**r) for r in f.get("rows", ())]
            if last_words:
                failures.append({"name": futures[future], "dtype": "", "shape": "", "error": last_words})
            unreached += [f"{futures[future]} {d} {s}" for s in SHAPES for d in DTYPES if (d, s) not in reached]
            note(f"checked {done}/{len(names)}: {futures[future]}")
    return rows, failures, unreached


def _in_a_process(name: str, deadline: float) -> tuple[list[dict[str, Any]], str]:
    """What a process that checks one spec has printed by the deadline, and its last words if it died of something else."""
    left = deadline - time.monotonic()
    if left <= 0:
        return [], ""
    env = {**os.environ, "OMP_NUM_THREADS": "2"}  # for the oracle
    command = [sys.executable, __file__, name]
    last_words = ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left, env=env, check=False)
        printed = done.stdout
        if done.returncode:
            last_words = done.stderr[-500:] or f"exit code {done.returncode}"
    except subprocess.TimeoutExpired as late:
        printed = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{") and line.endswith("}")], last_words


def check_one(name: str, device: str) -> None:
    """Prints a line of JSON for every dtype and shape of one spec."""
    for shape, sizes in SHAPES.items():
        for dtype in DTYPES:
            found: dict[str, Any] = {"dtype": dtype, "shape": shape}
            try:
                found["rows"] = [asdict(r) for r in check(einfuse.compile(name), dtype, device, sizes)]
            except Exception as error:  # a kernel that does not compile is a result here, whatever the compiler raises
                found["error"] = f"{type(error).__name__}: {str(error)[-500:]}"
            print(json.dumps(found), flush=True)


def check(attention: Attention, dtype: str, device: str, shape: Shape, seed: int = 0) -> list[Row]:
    """The rows of `einfuse.verify`, for the Triton kernels on a device: right when the error is at most twice that of the eager formula."""
    kind = DTYPES[dtype]
    inputs = example_inputs(attention.cascade, kind, seed, shape)
    truth = _evaluate(lambda **x: attention.reference(**x), inputs, torch.float64, "cpu", seed)
    eager = _evaluate(lambda **x: attention.reference(dtype=kind, **x), inputs, kind, "cpu", seed)
    found = _evaluate(attention.with_backend("triton"), inputs, kind, device, seed)
    rows = []
    for what, exact in truth.items():
        scale = exact.abs().max().item() if exact.numel() else 0.0
        allowed = 2 * _error(eager[what], exact) + 2 * torch.finfo(kind).eps * scale
        error = _error(found[what], exact)
        rows.append(Row(attention.name, f"triton {device}", dtype, what, error, allowed, error <= allowed))
    return rows


def _error(found: torch.Tensor, exact: torch.Tensor) -> float:
    if exact.numel() == 0:
        return 0.0
    error = (found.double().cpu() - exact).abs().max().item()
    return error if error == error else float("inf")


def _evaluate(
    fn: Callable[..., Any], inputs: Mapping[str, Any], dtype: torch.dtype, device: str, seed: int
) -> dict[str, torch.Tensor]:
    """Outputs and the gradients of every float tensor, by name."""
    leaves: dict[str, Any] = {}
    for name, x in inputs.items():
        if isinstance(x, torch.Tensor):
            x = x.detach().to(device=device, dtype=dtype if x.is_floating_point() else x.dtype)
            x = x.requires_grad_(x.is_floating_point())
        leaves[name] = x
    outs = fn(**leaves)
    outs = outs if isinstance(outs, tuple) else (outs,)
    found = {f"out {n}": o.detach() for n, o in enumerate(outs)}
    wanted = [n for n, x in leaves.items() if isinstance(x, torch.Tensor) and x.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(o.shape, generator=generator).to(dtype).to(o) for o in outs]
    grads = torch.autograd.grad(outs, [leaves[n] for n in wanted], directions, allow_unused=True)
    for n, g in zip(wanted, grads, strict=True):
        found[f"d {n}"] = torch.zeros_like(leaves[n]) if g is None else g
    return found


if __name__ == "__main__":
    check_one(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "cuda")
