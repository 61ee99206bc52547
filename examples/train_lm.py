"""Trains a small causal language model with `alibi_window.attn`, and the same model on scaled_dot_product_attention.

Same seed, same text (the standard library's own sources, byte by byte), so the two loss curves must lie on each other.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

import einfuse

SPEC = Path(__file__).parent / "alibi_window.attn"
AttentionFn = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Settings:
    """A model of half a million parameters over bytes."""

    steps: int = 200
    batch: int = 4
    length: int = 160
    window: int = 64
    width: int = 128
    heads: int = 4
    layers: int = 2
    rate: float = 1e-3
    seed: int = 0


@dataclass(slots=True)
class Curve:
    """The loss of every step, and the seconds they took together."""

    name: str
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def slopes(heads: int) -> torch.Tensor:
    """The geometric series of the ALiBi paper."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


def with_einfuse(s: Settings) -> AttentionFn:
    attention = einfuse.compile(SPEC, window=s.window)
    slope = slopes(s.heads)
    return lambda q, k, v: attention(q, k, v, slope=slope)


def with_sdpa(s: Settings) -> AttentionFn:
    """The same attention as a dense additive mask: [heads, length, length] numbers in memory."""
    i, j = torch.arange(s.length)[:, None], torch.arange(s.length)[None, :]
    bias = slopes(s.heads)[:, None, None] * (j - i)
    bias = bias.masked_fill((j > i) | (i - j >= s.window), float("-inf"))
    return lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Block(nn.Module):
    """Attention and a feed-forward layer, each after a norm and beside a residual."""

    def __init__(self, s: Settings, attend: AttentionFn) -> None:
        super().__init__()
        self.heads, self.attend = s.heads, attend
        self.before_attention, self.before_mlp = nn.LayerNorm(s.width), nn.LayerNorm(s.width)
        self.qkv, self.out = nn.Linear(s.width, 3 * s.width, bias=False), nn.Linear(s.width, s.width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(s.width, 4 * s.width), nn.GELU(), nn.Linear(4 * s.width, s.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(b, n, -1))
        return x + self.mlp(self.before_mlp(x))


class LanguageModel(nn.Module):
    """Bytes in, the next byte's logits out. Positions are known through the attention alone."""

    def __init__(self, s: Settings, attend: AttentionFn) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, s.width)
        self.blocks = nn.Sequential(*(Block(s, attend) for _ in range(s.layers)))
        self.norm, self.head = nn.LayerNorm(s.width), nn.Linear(s.width, 256, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.embed(tokens))))


def text(limit: int = 2_000_000) -> torch.Tensor:
    """The first sources of the standard library, in order of name."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    data = b"".join(f.read_bytes() for f in files)[:limit]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def loss_of(model: nn.Module, data: torch.Tensor, length: int, batch: int, draw: torch.Generator) -> torch.Tensor:
    """The mean loss of the next bytes, in nats, of a batch of texts of this length from anywhere in the data."""
    at = torch.randint(len(data) - length - 1, (batch,), generator=draw)
    rows = torch.stack([data[n : n + length + 1] for n in at.tolist()])
    return nn.functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def train(name: str, s: Settings, attend: AttentionFn, data: torch.Tensor, step_done: Callable[[], None]) -> Curve:
    torch.manual_seed(s.seed)
    model = LanguageModel(s, attend)
    # eps well above the rounding of the gradients: Adam would otherwise blow their last bits up to whole steps
    optimiser = torch.optim.AdamW(model.parameters(), lr=s.rate, eps=1e-4)
    draw = torch.Generator().manual_seed(s.seed)
    curve, start = Curve(name), time.perf_counter()
    for _ in range(s.steps):
        loss = loss_of(model, data, s.length, s.batch, draw)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        curve.losses.append(loss.item())
        step_done()
    curve.seconds = time.perf_counter() - start
    return curve


def difference(a: Curve, b: Curve) -> float:
    return max(abs(x - y) for x, y in zip(a.losses, b.losses, strict=True))


def main(settings: Settings | None = None) -> tuple[Curve, Curve]:
    s = settings or Settings()
    data = text()
    curves = []
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for name, attend in (("alibi_window.attn", with_einfuse(s)), ("sdpa, dense mask", with_sdpa(s))):
            task = bar.add_task(name, total=s.steps)
            curves.append(train(name, s, attend, data, lambda task=task: bar.advance(task)))
    return curves[0], curves[1]


def show(ours: Curve, stock: Curve) -> None:
    table = Table("step", ours.name, stock.name, "difference", box=None, header_style="bold")
    last = len(ours.losses) - 1
    for n in sorted({*range(0, last, max(1, last // 10)), last}):
        a, b = ours.losses[n], stock.losses[n]
        table.add_row(str(n + 1), f"{a:.5f}", f"{b:.5f}", f"{abs(a - b):.1e}")
    console = Console(highlight=False)
    console.print(table)
    console.print(f"\nmaximum difference of the loss curves over {last + 1} steps: {difference(ours, stock):.1e}")
    console.print(f"seconds: {ours.name} {ours.seconds:.1f}, {stock.name} {stock.seconds:.1f}")


def picture(path: Path, ours: Curve, stock: Curve) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(stock.losses, color="tab:orange", linewidth=4, alpha=0.5, label=stock.name)
    axes.plot(ours.losses, color="tab:blue", linewidth=1.2, label=ours.name)
    axes.set(xlabel="step", ylabel="loss (nats a byte)", title=f"largest difference {difference(ours, stock):.1e}")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--steps", type=int, default=Settings().steps)
    options.add_argument("--seed", type=int, default=Settings().seed)
    options.add_argument("--png", type=Path, help="draw the two curves to this file")
    given = options.parse_args()
    found = main(Settings(steps=given.steps, seed=given.seed))
    show(*found)
    if given.png:
        picture(given.png, *found)
    sys.exit(0 if difference(*found) < 1e-3 else 1)
