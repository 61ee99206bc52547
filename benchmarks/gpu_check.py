"""Correctness on a device: every kernel of a spec, values and gradients, beside the float64 oracle on the CPU; and calls under capture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import gpu_workers
import harness  # noqa: F401  # einfuse need not be installed

from einfuse.runtime.verify import Row, Shape

SHAPES = {
    "odd": Shape(),  # no tile divides these
    "even": Shape(batch=1, heads=4, queries=256, keys=256, widths=(64, 64), group=2),
}
ROUNDS = (("bfloat16", "odd"), ("float32", "odd"), ("bfloat16", "even"), ("float32", "even"))
"""What is checked of all specs before anything else is of any: the matrix units' kernels first, which differ most from the interpreter's."""
MINE = "gpu_check:"
SECONDS = 100.0  # for one spec in one dtype and shape, compilers included


def check_all(
    names: Sequence[str],
    workers: int,
    deadline: float,
    note: Callable[[str], None],
    device: str = "cuda",
    before: Sequence[gpu_workers.Task] = (),
) -> tuple[list[Row], list[dict[str, str]], list[str]]:
    """Rows, kernels that raised, and what the deadline left out.

    Compiling takes the time, so specs are spread over processes. The tasks ``before`` go first: those whose answers are rows are checks, too,
    others only fill the compilers' caches.
    """
    tasks = [*before]
    tasks += [gpu_workers.Task("gpu_check:check", (n, dtype, shape, device), SECONDS) for dtype, shape in ROUNDS for n in names]
    count = iter(range(1, len(tasks) + 1))

    def said(answer: gpu_workers.Answer) -> None:
        wrong = answer.error or ", ".join(r["what"] for r in _rows(answer) if not r["ok"])
        note(f"checked {next(count)}/{len(tasks)}: {_label(answer)}{' WRONG: ' * bool(wrong)}{wrong}")

    rows: list[Row] = []
    failures: list[dict[str, str]] = []
    unreached: list[str] = []
    for answer in gpu_workers.run(tasks, workers, deadline, said):
        if not answer.task.function.startswith(MINE):
            continue  # what it has to say will be said again
        if not answer.reached:
            unreached.append(_label(answer))
        elif answer.error:
            failures.append({"name": _label(answer), "error": answer.error})
        else:
            rows += [Row(**r) for r in _rows(answer)]
    return rows, failures, unreached


def _label(answer: gpu_workers.Answer) -> str:
    task = answer.task
    function = task.function.removeprefix(MINE)
    return " ".join((*([] if function == "check" else [function]), *(str(x) for x in task.arguments[:3])))


def _rows(answer: gpu_workers.Answer) -> list[dict[str, Any]]:
    return answer.value if answer.task.function.startswith(MINE) and answer.value else []


def check(name: str, dtype: str, shape: str, device: str) -> list[dict[str, Any]]:
    """The comparisons of one spec in one dtype and shape."""
    import einfuse

    found = einfuse.verify(
        einfuse.compile(name), backends=["triton"], dtypes=[dtype], shape=SHAPES[shape], device=device, brief=True
    )
    return [asdict(r) for r in found.rows]


def captured(name: str, dtype: str) -> list[dict[str, Any]]:
    """A call recorded in a CUDA graph and replayed on other values, beside the same call made directly: equal bits."""
    import torch

    import einfuse
    from einfuse.runtime.verify import DTYPES, example_inputs

    attention = einfuse.compile(name, backend="triton")
    shape = Shape(batch=2, heads=4, queries=384, keys=384, widths=(64, 64), group=2)
    held, second = (
        {
            n: x.to("cuda") if isinstance(x, torch.Tensor) else x
            for n, x in example_inputs(attention.cascade, DTYPES[dtype], seed, shape).items()
        }
        for seed in (1, 2)
    )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(3):
            attention(**held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        out = attention(**held)
    for n, x in second.items():
        there = held[n]
        if isinstance(x, torch.Tensor) and isinstance(there, torch.Tensor):
            there.copy_(x)
    graph.replay()
    with torch.no_grad():
        direct = attention(**held)
    error = max(float((o.double() - d.double()).abs().max()) for o, d in zip(_all(out), _all(direct), strict=True))
    return [asdict(Row(name, "triton cuda graph", dtype, "replay", error, 0.0, error == 0.0))]


def _all(out: Any) -> tuple[Any, ...]:
    return out if isinstance(out, tuple) else (out,)


def smoke() -> str:
    """What a machine takes to begin: seconds until a first kernel is right."""
    start = time.monotonic()
    found = check("causal", "bfloat16", "odd", "cuda")
    assert all(r["ok"] for r in found), found
    return f"{time.monotonic() - start:.1f} s"
