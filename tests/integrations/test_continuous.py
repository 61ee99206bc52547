"""Continuous batching of transformers on einfuse: the tokens of plain generation, and no gather of keys."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache_allocators.full_attention import FullAttentionCacheAllocator
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from einfuse.integrations.planned import Plans
from einfuse.integrations.transformers import continuous
from einfuse.runtime import backends

NEW = 6


def llama(attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    more: dict[str, Any] = {"attn_implementation": attention}
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=80,
        **more,
    )
    model: Any = transformers.LlamaForCausalLM(config)
    return model.eval()


@pytest.mark.filterwarnings("ignore")  # the model library's own
@pytest.mark.parametrize("tokens", [64, 8])  # at most so many in a step: a prompt of 17 in one piece, or in three
def test_tokens_are_those_of_plain_generation(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logging.disable(logging.ERROR)
    model, calls = llama(), []
    prompts = [torch.randint(3, 80, (n,)).tolist() for n in (5, 17, 9)]
    of: Any = GenerationConfig
    settings = of(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    plain = [model.generate(torch.tensor([p]), generation_config=settings)[0, len(p) :].tolist() for p in prompts]

    def run(self: Plans, *args: Any) -> Any:
        calls.append(args)
        return real(self, *args)

    def gathered(*args: Any) -> Any:
        raise AssertionError("all keys were copied")

    real = Plans.__call__
    monkeypatch.setattr(backends, "choose", lambda device, wanted=None: backends.BACKENDS["torch"])
    monkeypatch.setattr(Plans, "__call__", run)
    monkeypatch.setattr(FullAttentionCacheAllocator, "update", gathered)
    config = ContinuousBatchingConfig(num_blocks=16, page_size=16, max_batch_tokens=tokens)
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    try:
        with continuous(model):
            found = model.generate_batch(
                prompts, generation_config=settings, continuous_batching_config=config, progress_bar=False
            )
            still = model.generate(torch.tensor([prompts[0]]), generation_config=settings)[0, len(prompts[0]) :].tolist()
    finally:
        logging.disable(logging.NOTSET)
    inorder = sorted(found, key=lambda name: int(name.rsplit("_", 1)[1]))
    assert [found[n].generated_tokens for n in inorder] == plain
    assert still == plain[0]
    assert len(calls) >= 2 * NEW  # two layers, a token a step
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


def test_a_model_with_another_attention_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r'takes the place of "sdpa"; found attn_implementation=.eager'),
        continuous(llama("eager")),
    ):
        pass
