"""Tokens a second of the server in examples/serve beside transformers' `generate` with SDPA: a batch that is there at once, and mixed lengths.

    python benchmarks/engine.py [--batch 8] [--prompt 512] [--new 64] [--threads 1] [--repeats 3]

A Llama of random weights (width 512, 4 layers, 8 heads on 4). ``static``: batches that wait for their longest request.
Processor time in turns, medians.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import harness
import torch

sys.path.insert(0, str(harness.ROOT / "examples"))

from serve.__main__ import llama
from serve.engine import Engine
from serve.model import Capacity, Model
from serve.request import Request

Wish = tuple[list[int], int]
"""A prompt, and how many tokens are wanted."""


def generated(model: Any, wishes: list[Wish]) -> None:
    """One batch by `generate`, padded on the left, as long as its longest request."""
    longest = max(len(p) for p, _ in wishes)
    ids = torch.tensor([[0] * (longest - len(p)) + p for p, _ in wishes])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in wishes])
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.generate(ids, attention_mask=mask, max_new_tokens=max(n for _, n in wishes), **settings)


def served(model: Model, wishes: list[Wish]) -> None:
    """All by an engine of its own, so that no prefix is known."""
    engine = Engine(model)
    for prompt, most in wishes:
        engine.submit(Request(prompt, most))
    engine.run()


def each(run: Callable[[list[Wish]], None], batches: list[list[Wish]]) -> None:
    """One batch after the other."""
    for wishes in batches:
        run(wishes)


def main(argv: list[str] | None = None) -> int:
    args = harness.parsed(
        harness.options(__doc__, repeats=3, threads=1, json=True, batch=8, prompt=512, new=64, rows=512), argv
    )
    stock, draw = llama(512, 4), random.Random(0)
    table = -(-(args.prompt + args.new) // 16) + 1
    model = Model(llama(512, 4), Capacity(args.batch * table, table=table, batch=args.batch, rows=args.rows))

    def wish(tokens: int, most: int) -> Wish:
        return [draw.randrange(256) for _ in range(tokens)], most

    equal = [wish(args.prompt, args.new) for _ in range(args.batch)]
    mixed = [wish(draw.randrange(16, args.prompt), draw.choice((4, 8, 16, args.new))) for _ in range(4 * args.batch)]
    batches = [mixed[n : n + args.batch] for n in range(0, len(mixed), args.batch)]
    table = harness.Table("requests:10", "by:16", "tokens/s:.0f")
    with torch.no_grad():
        groups: dict[str, harness.Row] = {
            "at once": {"generate": lambda: generated(stock, equal), "engine": lambda: served(model, equal)},
            "mixed": {
                "static generate": lambda: each(partial(generated, stock), batches),
                "static engine": lambda: each(partial(served, model), batches),
                "engine": lambda: served(model, mixed),
            },
        }
        for (group, row), wishes in zip(groups.items(), (equal, mixed), strict=True):
            total = sum(n for _, n in wishes)
            found = harness.medians(row, args.repeats, unit=1)
            for name, seconds in found.items():
                table.row(group, name, total / seconds)
    harness.write(args.json, {"rows": table.rows})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
