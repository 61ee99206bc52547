"""The architectures of docs/integrations.md beside eager attention: logits, padded on either side, greedy tokens and beams with every cache.

    python benchmarks/transformers_table.py [--steps 40] [--only REGEX] [--backend torch]

Random small models of one layer of each kind. Prints a line for each: how many combinations agree, or which do not.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import harness
import torch
import transformers
from transformers import GenerationMixin
from transformers_families import LENGTH, Inputs, Run, apart, built, inputs, kept_logits, result

import einfuse.integrations as integrations

TABLE = {
    "Llama": "LlamaForCausalLM",
    "Mistral": "MistralForCausalLM",
    "Gemma 2": "Gemma2ForCausalLM",
    "Gemma 3": "Gemma3ForCausalLM",
    "Qwen 2": "Qwen2ForCausalLM",
    "Qwen 3": "Qwen3ForCausalLM",
    "Phi-3": "Phi3ForCausalLM",
    "GPT-2": "GPT2LMHeadModel",
    "GPT-NeoX": "GPTNeoXForCausalLM",
    "gpt-oss": "GptOssForCausalLM",
    "DeepSeek-V3": "DeepseekV3ForCausalLM",
    "Mixtral": "MixtralForCausalLM",
    "Bloom": "BloomForCausalLM",
    "MPT": "MptForCausalLM",
    "T5": "T5ForConditionalGeneration",
    "BERT": "BertForMaskedLM",
    "ModernBERT": "ModernBertForMaskedLM",
    "ViT": "ViTModel",
    "CLIP, text": "CLIPTextModel",
    "CLIP, image": "CLIPVisionModel",
    "Whisper": "WhisperForConditionalGeneration",
}
KINDS = {
    "BERT": "masked",
    "ModernBERT": "masked",
    "ViT": "image",
    "CLIP, image": "image",
    "CLIP, text": "encoder",
    "T5": "seq2seq",
}
CACHES = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "quantised": {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}},
}
"""What `generate` makes without further packages or devices; windows and sinks have layers of their own in the first two. The last one
is for models of full layers alone: transformers refuses it for others."""
FEW = (("dynamic", "left", 1), ("static", "right", 3), ("quantised", "left", 1))
TOLERANCE = 1e-4
"""Of logits, times the largest where that is more than 1."""


def model(name: str) -> Any:
    """A small random model, whose tokens differ."""
    if name != "Whisper":
        made = built(KINDS.get(name, "causal"), TABLE[name])
    else:
        sizes: Any = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
        heads: Any = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": 128, "num_mel_bins": 8}
        ends: Any = {"max_source_positions": 10, "max_target_positions": 64, "decoder_start_token_id": 1, "pad_token_id": 0}
        torch.manual_seed(0)
        config = transformers.WhisperConfig(**sizes, **heads, **ends, bos_token_id=1, eos_token_id=2)
        made = transformers.WhisperForConditionalGeneration(config).eval()  # type: ignore[no-untyped-call]
        for p in made.parameters():
            if p.ndim >= 2:
                p.data.mul_(3)
    return made


def combinations(name: str, net: Any, steps: int, few: bool) -> Iterator[tuple[str, Run]]:
    """What is compared, and the calls; or a few of them, in which every cache, padding and search occurs."""
    kind = KINDS.get(name, "causal")
    for pad in ("none",) if kind == "image" else ("none", "left", "right"):
        yield f"logits, padding {pad}", partial(_logits, name, kind, net, pad)
    if kind in ("causal", "seq2seq"):
        for cache, pad, beams in FEW if few else itertools.product(CACHES, ("left", "right"), (1, 3)):
            way = f"{beams} beams" if beams > 1 else "greedy"
            yield f"{way}, {cache} cache, padding {pad}", partial(_tokens, name, kind, net, pad, cache, beams, steps)


def _logits(name: str, kind: str, net: Any, pad: str) -> torch.Tensor:
    if name != "Whisper":
        return kept_logits(kind, net, 2, pad)
    given, real = inputs("causal", net, 2, pad)
    mask = {} if pad == "none" else {"decoder_attention_mask": given["attention_mask"]}
    out = net(**_sound(net), decoder_input_ids=given["input_ids"], **mask)
    found: torch.Tensor = out.logits[real].detach()
    return found


def _tokens(name: str, kind: str, net: Any, pad: str, cache: str, beams: int, steps: int) -> torch.Tensor:
    """The tokens of a batch of two, padded by less than a window holds: of a row that sees no key eager attention makes something up."""
    given, _ = inputs(kind, net, 2, pad)
    if kind == "causal":
        real = torch.arange(LENGTH)[None] < torch.tensor([[LENGTH], [LENGTH - 3]])
        given["attention_mask"] = (real if pad == "right" else real.flip(1)).long()
    if name == "Whisper":
        given = _sound(net) | {f"decoder_{n}": x for n, x in given.items()}
    elif kind == "seq2seq":
        given.pop("decoder_input_ids")
    settings = net.generation_config
    settings.eos_token_id, settings.decoder_start_token_id, settings.pad_token_id = None, 1, 0
    more: Any = CACHES[cache]
    many: Any = {"max_new_tokens": steps, "do_sample": False, "num_beams": beams, "disable_compile": True}
    with torch.no_grad():
        found: torch.Tensor = GenerationMixin.generate(net, **given, **many, **more)
    return found


def _sound(net: Any) -> Inputs:
    torch.manual_seed(1)
    return {"input_features": torch.randn(2, net.config.num_mel_bins, 2 * net.config.max_source_positions)}


def judged(name: str, steps: int, few: bool = False) -> tuple[list[str], dict[str, str]]:
    """What is as with eager attention, and what is not, with the reason; one entry for a model that is refused as a whole."""
    net = model(name)
    try:
        net.set_attn_implementation("einfuse")
    except ValueError as error:
        return [], {"refused": str(error)}
    same: list[str] = []
    other: dict[str, str] = {}
    for what, run in combinations(name, net, steps, few):
        # Eager averages padded rows, whose values are in the scale of a quantised tensor.
        stock = "sdpa" if "quantised" in what and net._supports_sdpa else "eager"
        right, found = (result(net, attention, run) for attention in (stock, "einfuse"))
        if isinstance(right, ValueError) and "quantized" in str(right).lower() and str(right) == str(found):
            same.append(f"{what}: the model has none")
        elif isinstance(right, Exception):
            other[what] = f"{stock} itself fails: {type(right).__name__}: {str(right)[:120]}"
        elif isinstance(found, Exception):
            other[what] = f"{type(found).__name__}: {str(found)[:200]}"
        elif difference := _apart(right, found):
            other[what] = difference
        else:
            same.append(what)
    return same, other


def _apart(right: torch.Tensor, found: torch.Tensor) -> str:
    if right.is_floating_point() and right.shape == found.shape and bool(right.isfinite().all()):
        far = (right - found).abs().max().item() / max(1.0, right.abs().max().item())
        return "" if far <= TOLERANCE else f"{far:.1e}"
    return apart(right, found)


def main() -> int:
    made = harness.options(__doc__, threads=1, steps=40)
    made.add_argument("--only", default="")
    made.add_argument("--backend", default="torch")
    args = harness.parsed(made)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    integrations.transformers.register("einfuse", backend=args.backend)
    wrong = 0
    for name in TABLE:
        if re.search(args.only, name):
            same, other = judged(name, args.steps)
            wrong += len(other)
            print(f"{name:12} {len(same)} equal" + "".join(f"; {n}: {x}" for n, x in other.items()), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
