"""A transformers model on einfuse by one line, then with an attention of one's own.

Random weights of a small Mistral: nothing is downloaded. `pip install transformers` is needed.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from rich.console import Console

from einfuse.integrations import transformers as integration

OWN = '''
"""Squared ReLU attention over a padded batch (Hua et al., ICML 2022), causal."""
attention relu_squared over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  in pad[b, j]: bool optional
  s = sum[d](q * k) / sqrt(D) where j <= i + Nk - Nq and (not given(pad) or pad)
  o[i, e] = sum[j](relu(s)^2 / count[j](s) * v)
  out o
}
'''


def model() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 6}
    return MistralForCausalLM(MistralConfig(**sizes, **heads, attn_implementation="eager")).eval()


def main(backend: str | None = None) -> tuple[float, float]:
    """The largest difference of the logits: stock against einfuse, and stock against another mechanism."""
    console = Console(highlight=False)
    integration.register("einfuse", backend=backend)  # type: ignore[arg-type]  # a name from the command line
    integration.register("relu_squared", OWN, backend=backend)  # type: ignore[arg-type]

    net = model()
    ids = torch.randint(3, 100, (3, 12))
    mask = (torch.arange(12)[None] < torch.tensor([[12], [9], [4]])).long()
    logits = {}
    for name in ("eager", "einfuse", "relu_squared"):
        net.set_attn_implementation(name)
        with torch.no_grad():
            logits[name] = net(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    same, other = ((logits["eager"] - logits[n]).abs().max().item() for n in ("einfuse", "relu_squared"))
    console.print("a padded batch of 12, 9 and 4 tokens through a Mistral with a sliding window of 6")
    console.print(f"einfuse: largest difference of the logits {same:.1e}")
    console.print(f"squared ReLU in its place, another model: {other:.1e}")
    return same, other


if __name__ == "__main__":
    sys.exit(0 if main()[0] < 1e-4 else 1)
