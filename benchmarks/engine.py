"""Tokens a second of the server in examples/serve beside transformers' `generate` with SDPA: a batch that is there at once, and mixed lengths.

    python benchmarks/engine.py [--batch 8] [--prompt 512] [--new 64] [--threads 1] [--repeats 3]

A Llama of random weights (width 512, 4 layers, 8 heads on 4). ``static``: batches that wait for their longest request.
Processor time in turns, medians.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent), str(ROOT / "examples")]

import torch  # noqa: E402
from serve.__main__ import llama  # noqa: E402
from serve.engine import Engine  # noqa: E402
from serve.model import Capacity, Model  # noqa: E402
from serve.request import Request  # noqa: E402
from turns import Row, medians  # noqa: E402

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
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, usual in {"batch": 8, "prompt": 512, "new": 64, "threads": 1, "repeats": 3, "rows": 512}.items():
        made.add_argument(f"--{name}", type=int, default=usual)
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    stock, draw = llama(512, 4), random.Random(0)
    table = -(-(args.prompt + args.new) // 16) + 1
    model = Model(llama(512, 4), Capacity(args.batch * table, table=table, batch=args.batch, rows=args.rows))

    def wish(tokens: int, most: int) -> Wish:
        return [draw.randrange(256) for _ in range(tokens)], most

    equal = [wish(args.prompt, args.new) for _ in range(args.batch)]
    mixed = [wish(draw.randrange(16, args.prompt), draw.choice((4, 8, 16, args.new))) for _ in range(4 * args.batch)]
    batches = [mixed[n : n + args.batch] for n in range(0, len(mixed), args.batch)]
    with torch.no_grad():
        groups: dict[str, Row] = {
            "at once": {"generate": lambda: generated(stock, equal), "engine": lambda: served(model, equal)},
            "mixed": {
                "static generate": lambda: each(partial(generated, stock), batches),
                "static engine": lambda: each(partial(served, model), batches),
                "engine": lambda: served(model, mixed),
            },
        }
        for (group, row), wishes in zip(groups.items(), (equal, mixed), strict=True):
            total = sum(n for _, n in wishes)
            found = medians(row, args.repeats, skipped=1)
            print(f"{group}: " + ", ".join(f"{n} {total / t * 1e6:.0f} tokens/s" for n, t in found.items()), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
