"""`python -m serve`: a Llama with random weights, whose tokens are bytes, behind HTTP."""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import uvicorn

from serve.api import END, Steps, application
from serve.engine import Engine
from serve.model import Capacity, Model
from serve.request import lookup


def llama(width: int = 64, layers: int = 2, seed: int = 0) -> Any:
    """A model with random weights: nothing is downloaded."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes: Any = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "vocab_size": END + 1}
    heads: Any = {"num_attention_heads": width // 16, "num_key_value_heads": max(1, width // 32)}
    model: Any = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    return model.eval()


def main(argv: list[str] | None = None) -> None:
    made = argparse.ArgumentParser(prog="serve", description=(__doc__ or "").splitlines()[0])
    made.add_argument("--host", default="127.0.0.1")
    made.add_argument("--port", type=int, default=8000)
    made.add_argument("--pages", type=int, default=256)
    made.add_argument("--no-drafts", action="store_true")
    args = made.parse_args(argv)
    model = Model(llama(), Capacity(args.pages))
    steps = Steps(Engine(model) if args.no_drafts else Engine(model, lookup))
    steps.start()
    uvicorn.run(application(steps), host=args.host, port=args.port)


if __name__ == "__main__":
    main()
