"""Trains a small language model with native sparse attention and with dense attention; then times steps of both at longer texts.

Same seed, same text (the standard library's own sources, byte by byte). A query of the sparse model reads summaries of all blocks, the blocks
that its group of heads finds best, and a window (NSA, Yuan et al., ACL 2025: https://arxiv.org/abs/2502.11089), each weighed by a gate.

    python examples/native_sparse.py --json found.json --picture found.svg
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import einfuse
from einfuse.library.layers import NativeSparseAttention
from einfuse.runtime.backends import BackendName

sys.path.insert(0, str(Path(__file__).parent))
from train_lm import loss_of, text  # beside this file


@dataclass(frozen=True, slots=True)
class Reading:
    """What a query reads: summaries of ``span`` tokens every ``stride``, the ``best`` blocks, and a window."""

    span: int = 32
    stride: int = 16
    block: int = 64
    best: int = 16
    window: int = 512


@dataclass(frozen=True, slots=True)
class Settings:
    """A model over bytes. It trains on texts that are shorter than those it is timed at, and reads less of them."""

    steps: int = 200
    batch: int = 2
    length: int = 512
    width: int = 256
    heads: int = 4
    kv_heads: int = 1
    layers: int = 2
    rate: float = 1e-3
    seed: int = 0
    trained: Reading = Reading(16, 8, 32, 4, 64)
    timed: Reading = Reading()
    tokens: tuple[int, ...] = (2048, 4096, 8192, 16384)
    repeats: int = 3
    backend: BackendName | None = None


@dataclass(slots=True)
class Found:
    """The losses of every step, and seconds of processor time for a step, by name of the attention and number of tokens."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)


class DenseAttention(nn.Module):
    """Causal, with heads that share keys and values."""

    def __init__(self, width: int, heads: int, kv_heads: int, backend: BackendName | None) -> None:
        super().__init__()
        self.heads, self.kv_heads, each = heads, kv_heads, width // heads
        self.query, self.key_value = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * kv_heads * each, bias=False)
        self.out, self.attention = nn.Linear(width, width, bias=False), einfuse.compile("causal", backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (t.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for t in self.key_value(x).chunk(2, -1))
        return self.out(self.attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return,union-attr]  # one output


def sparse(s: Settings, reading: Reading) -> nn.Module:
    return NativeSparseAttention(s.width, s.heads, s.kv_heads, **asdict(reading), backend=s.backend)


def dense(s: Settings, reading: Reading) -> nn.Module:
    return DenseAttention(s.width, s.heads, s.kv_heads, s.backend)


WAYS: dict[str, Callable[[Settings, Reading], nn.Module]] = {"native sparse": sparse, "dense": dense}


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm and beside a residual."""

    def __init__(self, s: Settings, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.before_attention, self.before_mlp = attention, nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.mlp = nn.Sequential(nn.Linear(s.width, 4 * s.width), nn.GELU(), nn.Linear(4 * s.width, s.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))  # type: ignore[no-any-return]


class LanguageModel(nn.Module):
    """Bytes and sinusoids of their places in, the next byte's logits out."""

    def __init__(self, s: Settings, way: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, s.width)
        self.norm, self.head = nn.LayerNorm(s.width), nn.Linear(s.width, 256, bias=False)
        self.blocks = nn.Sequential(*(Block(s, way()) for _ in range(s.layers)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        rate = 1e4 ** (-torch.arange(0, x.shape[-1], 2) / x.shape[-1])
        angle = torch.arange(x.shape[1])[:, None] * rate
        return self.head(self.norm(self.blocks(x + torch.cat([angle.sin(), angle.cos()], -1))))  # type: ignore[no-any-return]


class Training:
    """A model, and one step after the other on rows of a text."""

    def __init__(self, s: Settings, name: str, reading: Reading, length: int, batch: int) -> None:
        torch.manual_seed(s.seed)
        self.model = LanguageModel(s, lambda: WAYS[name](s, reading))
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=s.rate)
        self.draw, self.data, self.length, self.batch = torch.Generator().manual_seed(s.seed), text(), length, batch

    def step(self) -> float:
        loss = loss_of(self.model, self.data, self.length, self.batch, self.draw)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return loss.item()


def timed(s: Settings, length: int) -> dict[str, float]:
    """Seconds of processor time for a step of each, in turns."""
    runs = {name: Training(s, name, s.timed, length, 1) for name in WAYS}
    for run in runs.values():
        run.step()
    taken: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(s.repeats):
        for name, run in runs.items():
            start = time.process_time()
            run.step()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(t) for name, t in taken.items()}


def main(settings: Settings | None = None) -> Found:
    s = settings or Settings()
    found = Found({}, {name: {} for name in WAYS})
    for name in WAYS:
        run = Training(s, name, s.trained, s.length, s.batch)
        found.losses[name] = [run.step() for _ in range(s.steps)]
    for length in s.tokens:
        for name, seconds in timed(s, length).items():
            found.seconds[name][length] = seconds
    return found


def show(found: Found) -> None:
    console, steps = Console(highlight=False), len(next(iter(found.losses.values())))
    losses = Table("step", *found.losses, box=None, header_style="bold")
    for n in sorted({*range(0, steps, max(1, steps // 10)), steps - 1}):
        losses.add_row(str(n + 1), *(f"{x[n]:.3f}" for x in found.losses.values()))
    seconds = Table("tokens", *(f"{name}, s a step" for name in found.seconds), box=None, header_style="bold")
    for length in next(iter(found.seconds.values())):
        seconds.add_row(str(length), *(f"{x[length]:.2f}" for x in found.seconds.values()))
    console.print(losses)
    console.print(seconds)


def picture(path: Path, found: Found) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, losses in found.losses.items():
        every = max(1, len(losses) // 50)  # a single step says more of its text than of the model
        means = [statistics.mean(losses[n : n + every]) for n in range(0, len(losses) - every + 1, every)]
        left.plot([every * (n + 1) for n in range(len(means))], means, label=name, linewidth=1.2)
        times = found.seconds[name]
        right.plot(list(times), list(times.values()), "o-", label=name)
        right.set_xticks(list(times), [f"{length:,}" for length in times])
    left.set(xlabel="step", ylabel="loss (nats a byte)")
    right.set(xlabel="tokens", ylabel="processor time of a step, s", ylim=(0, None))
    for axes in (left, right):
        axes.legend()
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--steps", type=int, default=Settings().steps)
    options.add_argument("--tokens", type=int, nargs="*", default=Settings().tokens)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--seed", type=int, default=Settings().seed)
    options.add_argument("--json", type=Path, help="write the numbers to this file")
    options.add_argument("--picture", type=Path, help="draw them to this file, .svg or .png")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    result = main(Settings(steps=given.steps, tokens=tuple(given.tokens), seed=given.seed))
    show(result)
    if given.json:
        given.json.write_text(json.dumps(asdict(result), indent=1) + "\n")
    if given.picture:
        picture(given.picture, result)
