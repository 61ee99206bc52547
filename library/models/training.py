"""What every model's command does: train with a progress bar, score, draw the loss, save a checkpoint."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from einfuse.library.layers.common import BackendName


@dataclass(frozen=True, slots=True)
class Task:
    """A model and its data. ``loss`` draws a batch with the generator; ``score`` measures the model on data it has not seen."""

    name: str
    model: nn.Module
    loss: Callable[[torch.Generator], torch.Tensor]
    score: Callable[[], tuple[str, float]]
    steps: int
    rate: float = 2e-3


Build = Callable[[bool, BackendName | None], Task]
"""Makes a task: `build(tiny, backend)`; a tiny one has the smallest sizes that still run every part."""


@dataclass(frozen=True, slots=True)
class Result:
    """The loss of every step, the score before and after, and the seconds of the steps."""

    losses: tuple[float, ...]
    measure: str
    before: float
    after: float
    seconds: float


def train(task: Task, steps: int, seed: int = 0) -> Result:
    """Adam with a warm-up and a cosine decay. Raises FloatingPointError where the loss is not finite."""
    optimiser = torch.optim.AdamW(task.model.parameters(), lr=task.rate, weight_decay=0.01)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, task.rate, total_steps=steps + 1, pct_start=min(0.5, warm / steps)
    )
    generator = torch.Generator().manual_seed(seed)
    measure, before = task.score()
    losses, start = [], time.perf_counter()
    console = Console(stderr=True)
    columns = (
        TextColumn(task.name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task(task.name, total=steps, loss=float("nan"))
        for step in range(steps):
            loss = task.loss(generator)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"{task.name}: the loss of step {step} is {loss.item()}")
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            bar.update(row, advance=1, loss=losses[-1])
    seconds = time.perf_counter() - start
    return Result(tuple(losses), measure, before, task.score()[1], seconds)


def save(task: Task, result: Result, path: Path) -> None:
    """The weights and the result, complete or not at all: a crash leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        torch.save(
            {"model": task.model.state_dict(), "losses": result.losses, "score": (result.measure, result.after)}, temporary
        )
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def draw(task: Task, result: Result, path: Path) -> None:
    """The loss by step, and its running mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    losses = torch.tensor(result.losses)
    width = max(1, len(losses) // 25)
    mean = losses.unfold(0, width, 1).mean(1)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(losses, color="tab:blue", alpha=0.3, label="step")
    axes.plot(range(width - 1, len(losses)), mean, color="tab:blue", label=f"mean of {width}")
    axes.set(xlabel="step", ylabel="loss", title=f"{task.name}: {result.measure} {result.before:.3f} -> {result.after:.3f}")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def command(build: Build, argv: Sequence[str] | None = None) -> Result:
    """The command line of a model."""
    options = argparse.ArgumentParser(description=(sys.modules[build.__module__].__doc__ or "").splitlines()[0])
    options.add_argument("--steps", type=int, help="training steps; the model's own number unless given")
    options.add_argument("--seed", type=int, default=0, help="%(default)s unless given")
    options.add_argument("--out", type=Path, help="the folder of checkpoint and plot; out/NAME unless given")
    options.add_argument("--backend", choices=("cpu", "triton", "torch"), help="chosen by device unless given")
    options.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that everything runs")
    args: Any = options.parse_args(argv)
    if args.steps is not None and args.steps < 1:
        options.error(f"--steps must be positive, found {args.steps}")
    torch.manual_seed(args.seed)
    task = build(args.tiny, args.backend)
    result = train(task, args.steps or task.steps, args.seed)
    out = args.out or Path("out") / task.name
    save(task, result, out / "model.pt")
    draw(task, result, out / "loss.png")
    console = Console(highlight=False)
    size = sum(p.numel() for p in task.model.parameters())
    console.print(f"{task.name}: {size:,} parameters, {len(result.losses)} steps in {result.seconds:.1f} s")
    console.print(
        f"loss {result.losses[0]:.3f} -> {result.losses[-1]:.3f}, {result.measure} {result.before:.3f} -> {result.after:.3f}"
    )
    console.print(f"written: {out / 'model.pt'}, {out / 'loss.png'}", soft_wrap=True)
    return result
