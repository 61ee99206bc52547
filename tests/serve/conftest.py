"""The server of examples/serve, importable, and a small model with the tokens that plain generation gives."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

Plain = Callable[[Sequence[int], int], list[int]]


def llama() -> Any:
    """Weights large enough that tokens hardly repeat."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 257}
    heads: dict[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.5,
        "attn_implementation": "eager",
    }
    config = transformers.LlamaConfig(**sizes, **heads)
    model: Any = transformers.LlamaForCausalLM(config)
    return model.eval()


@pytest.fixture(scope="session")
def plain() -> Plain:
    """The tokens that `generate` gives, with eager attention."""
    model, known = llama(), dict[tuple[int, ...], list[int]]()

    def generate(prompt: Sequence[int], most: int) -> list[int]:
        key = (*prompt, most)
        if key not in known:
            ids = torch.tensor([list(prompt)])
            settings = {"max_new_tokens": most, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            known[key] = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist()
        return known[key]

    return generate


@pytest.fixture(scope="session")
def engine() -> Callable[..., Any]:
    """An engine over that model, of pages of 4 tokens."""
    from serve.engine import Engine
    from serve.model import Capacity, Model

    def made(pages: int = 24, batch: int = 3, rows: int = 9, prefixes: bool = False, **options: Any) -> Any:
        return Engine(Model(llama(), Capacity(pages, width=4, table=16, batch=batch, rows=rows), prefixes), **options)

    return made
