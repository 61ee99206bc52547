"""Trains the language model of `train_lm.py` with its sequence over several processes, and alone: the losses are the same, the memory is not.

torchrun --nproc-per-node 2 examples/long_context.py
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

import einfuse
import einfuse.distributed

sys.path.insert(0, str(Path(__file__).parent))
from train_lm import SPEC, LanguageModel, Settings, slopes, text  # beside this file

Cut = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Run:
    """The loss of every step, and the bytes that one process kept for a backward."""

    losses: list[float]
    kept: int


def train(s: Settings, attend: Callable[..., torch.Tensor], cut: Cut, total: Cut) -> Run:
    """Trains on the tokens that ``cut`` leaves to this process; ``total`` sums over the processes what each has a part of."""
    torch.manual_seed(s.seed)
    model, data, losses, kept = LanguageModel(s, attend), text(), list[float](), dict[int, int]()
    optimiser = torch.optim.AdamW(model.parameters(), lr=s.rate, eps=1e-4)
    draw = torch.Generator().manual_seed(s.seed)

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    for _ in range(s.steps):
        at = torch.randint(len(data) - s.length - 1, (s.batch,), generator=draw)
        rows = torch.stack([data[n : n + s.length + 1] for n in at.tolist()])
        tokens, labels = cut(rows[:, :-1]), cut(rows[:, 1:])  # labels are shifted before they are cut
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            each = nn.functional.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="sum")
            loss = each / rows[:, 1:].numel()
        optimiser.zero_grad()
        loss.backward()
        for p in model.parameters():
            p.grad = total(p.grad)
        optimiser.step()
        losses.append(float(total(loss.detach())))
    return Run(losses, sum(kept.values()))


def summed(x: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(x)
    return x


def main(settings: Settings | None = None) -> tuple[Run, Run]:
    """The run over all processes, and the run of one alone."""
    s = settings or Settings(steps=20, batch=2, length=512)
    started = not dist.is_initialized()
    if started and "RANK" in os.environ:
        dist.init_process_group("gloo")
    elif started:
        dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("seq",))
    attention, slope = einfuse.compile(SPEC, window=s.window), slopes(s.heads)
    sharded = einfuse.distributed.shard(attention, mesh, i="seq", j="seq")
    plan = sharded.layout(s.length, window=s.window)
    local = sharded.on(plan)
    over = train(s, lambda q, k, v: local(q, k, v, slope=slope), lambda x: plan.scatter(x, dim=1)[0], summed)
    alone = train(s, lambda q, k, v: attention(q, k, v, slope=slope), lambda x: x, lambda x: x)
    if dist.get_rank() == 0:
        worst = max(abs(a - b) for a, b in zip(over.losses, alone.losses, strict=True))
        print(
            f"{mesh.size()} processes, {plan.kind} layout, {s.length} positions: loss {over.losses[0]:.4f} -> {over.losses[-1]:.4f}"
        )
        print(f"largest difference to one process over {s.steps} steps: {worst:.1e}")
        print(f"kept for a backward: {over.kept / 2**20:.1f} MiB in each process, {alone.kept / 2**20:.1f} MiB in one alone")
    if started:
        dist.destroy_process_group()
    return over, alone


if __name__ == "__main__":
    main()
