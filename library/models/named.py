"""Models by the names of their papers: which specs their layers attend with, in what order, and how many parameters they have.

`MODELS` is the table. What has a shape is built whole, as a `Decoder` or a `Transformer`, and takes the weights of `transformers`;
of the others the attention is known here, and the layers that stand around it are in `einfuse.library.layers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

import einfuse
from einfuse.library.layers.common import BackendName
from einfuse.library.models.decoder import Decoder, Layer, Rotation, Shape
from einfuse.library.models.transformer import KINDS, Form, Transformer


@dataclass(frozen=True, slots=True)
class Model:
    """A model: ``pattern`` repeats over its ``depth`` layers; ``parameters`` is what its authors released, ``shape`` what it is built of."""

    name: str
    paper: str
    depth: int
    pattern: tuple[Layer, ...]
    parameters: int = 0
    shape: Shape | Form | None = None

    def layer(self, number: int) -> Layer:
        """What layer ``number`` attends with. Raises ValueError for one that it has not."""
        if not 0 <= number < self.depth:
            raise ValueError(f"{self.name} has {self.depth} layers, from 0 on, found {number}")
        return self.pattern[number % len(self.pattern)]

    def specs(self) -> str:
        """The specs in the order of the layers: ``5 sliding_window, 1 causal``."""
        runs: list[tuple[str, int]] = []
        for spec in (layer.spec for layer in self.pattern):
            runs[-1:] = [(spec, runs[-1][1] + 1)] if runs and runs[-1][0] == spec else [*runs[-1:], (spec, 1)]
        return ", ".join(f"{n} {spec}" for spec, n in runs) if len(runs) > 1 else runs[0][0]


def every(spec: str, rotation: Rotation | None = None, times: int = 1, **params: Any) -> tuple[Layer, ...]:
    return (Layer(spec, tuple(params.items()), rotation),) * times


def decoder(name: str, paper: str, parameters: int, pattern: tuple[Layer, ...], *sizes: int, **more: Any) -> Model:
    """``sizes``: width, depth, heads, heads of keys, width of the network, vocabulary."""
    width, depth, heads, kv_heads, hidden, vocabulary = sizes
    return Model(name, paper, depth, pattern, parameters, Shape(width, depth, heads, kv_heads, hidden, vocabulary, **more))


def transformer(name: str, paper: str, parameters: int, spec: str, *sizes: int, **more: Any) -> Model:
    """``sizes``: width, depth, heads, outputs."""
    width, depth, heads, outputs = sizes
    return Model(name, paper, depth, every(spec), parameters, Form(width, depth, heads, 4 * width, outputs, **more))


LLAMA, LLAMA_3, FAR = Rotation(), Rotation(500000.0), Rotation(1000000.0)
COARSE: dict[str, Any] = {"epsilon": 1e-5}
GEMMA: dict[str, Any] = {"gemma": True, "tied": True, "head_width": 256}
GEMMA_2: dict[str, Any] = {**GEMMA, "norms": "both", "cap": 30.0}
GPT: dict[str, Any] = {"gelu": "tanh", "epsilon": 1e-5}
BERT: dict[str, Any] = {"task": "encode", "norms": "behind", "embedded": True}
VIT: dict[str, Any] = {"task": "classify", "patch": 16}
ALTERNATING = (*every("softcap_window", LLAMA, window=4096), *every("softcap", LLAMA))
FIVE_OF_SIX = (*every("sliding_window", LLAMA, 5, window=512), *every("gqa", FAR))
KIMI = (*every("kda", times=3), *every("mla_absorbed"))
MODELS = {
    m.name: m
    for m in (
        decoder(
            "llama_2_7b",
            "Llama 2, Touvron et al., 2023",
            6738415616,
            every("gqa", LLAMA),
            4096,
            32,
            32,
            32,
            11008,
            32000,
            **COARSE,
        ),
        decoder(
            "code_llama_7b",
            "Code Llama, Rozière et al., 2023",
            6738546688,
            every("gqa", FAR),
            4096,
            32,
            32,
            32,
            11008,
            32016,
            **COARSE,
        ),
        decoder("deepseek_7b", "DeepSeek LLM, 2024", 6910365696, every("gqa", LLAMA), 4096, 30, 32, 32, 11008, 102400),
        decoder(
            "yi_6b",
            "Yi, Young et al., 2024",
            6061035520,
            every("gqa", Rotation(5000000.0)),
            4096,
            32,
            32,
            4,
            11008,
            64000,
            **COARSE,
        ),
        decoder(
            "tinyllama_1b",
            "TinyLlama, Zhang et al., 2024",
            1100048384,
            every("gqa", LLAMA),
            2048,
            22,
            32,
            4,
            5632,
            32000,
            **COARSE,
        ),
        decoder("llama_3_8b", "Llama 3, 2024", 8030261248, every("gqa", LLAMA_3), 4096, 32, 32, 8, 14336, 128256, **COARSE),
        decoder(
            "llama_3_1_8b",
            "Llama 3.1, 2024",
            8030261248,
            every("gqa", Rotation(500000.0, 8.0, True)),
            4096,
            32,
            32,
            8,
            14336,
            128256,
            **COARSE,
        ),
        decoder(
            "llama_3_2_1b",
            "Llama 3.2, 2024",
            1235814400,
            every("gqa", Rotation(500000.0, 32.0, True)),
            2048,
            16,
            32,
            8,
            8192,
            128256,
            **COARSE,
            tied=True,
        ),
        decoder(
            "smollm2_135m",
            "SmolLM2, Ben Allal et al., 2025",
            134515008,
            every("gqa", Rotation(100000.0)),
            576,
            30,
            9,
            3,
            1536,
            49152,
            **COARSE,
            tied=True,
        ),
        decoder(
            "smollm2_1_7b",
            "SmolLM2, Ben Allal et al., 2025",
            1711376384,
            every("gqa", Rotation(130000.0)),
            2048,
            24,
            32,
            32,
            8192,
            49152,
            **COARSE,
            tied=True,
        ),
        decoder(
            "mistral_7b",
            "Mistral 7B, Jiang et al., 2023",
            7241732096,
            every("sliding_window", LLAMA, window=4096),
            4096,
            32,
            32,
            8,
            14336,
            32000,
            **COARSE,
        ),
        decoder(
            "qwen_2_5_0_5b", "Qwen2.5, 2024", 494032768, every("gqa", FAR), 896, 24, 14, 2, 4864, 151936, bias=True, tied=True
        ),
        decoder("qwen_2_5_7b", "Qwen2.5, 2024", 7615616512, every("gqa", FAR), 3584, 28, 28, 4, 18944, 152064, bias=True),
        decoder(
            "qwen_3_0_6b",
            "Qwen3, 2025",
            596049920,
            every("gqa", FAR),
            1024,
            28,
            16,
            8,
            3072,
            151936,
            head_width=128,
            normed="head",
            tied=True,
        ),
        decoder(
            "qwen_3_8b",
            "Qwen3, 2025",
            8190735360,
            every("gqa", FAR),
            4096,
            36,
            32,
            8,
            12288,
            151936,
            head_width=128,
            normed="head",
        ),
        decoder(
            "olmo_2_7b",
            "OLMo 2, 2025",
            7298617344,
            every("gqa", LLAMA_3),
            4096,
            32,
            32,
            32,
            11008,
            100352,
            normed="whole",
            norms="behind",
        ),
        decoder(
            "gemma_7b", "Gemma, Gemma Team, 2024", 8537680896, every("gqa", LLAMA), 3072, 28, 16, 16, 24576, 256000, **GEMMA
        ),
        decoder("gemma_2_2b", "Gemma 2, Gemma Team, 2024", 2614341888, ALTERNATING, 2304, 26, 8, 4, 9216, 256000, **GEMMA_2),
        decoder("gemma_2_9b", "Gemma 2, Gemma Team, 2024", 9241705984, ALTERNATING, 3584, 42, 16, 8, 14336, 256000, **GEMMA_2),
        decoder(
            "gemma_2_27b",
            "Gemma 2, Gemma Team, 2024",
            27227128320,
            ALTERNATING,
            4608,
            46,
            32,
            16,
            36864,
            256000,
            **{**GEMMA_2, "head_width": 128, "scale": 144.0},
        ),
        decoder(
            "gemma_3_1b",
            "Gemma 3, Gemma Team, 2025",
            999885952,
            FIVE_OF_SIX,
            1152,
            26,
            4,
            1,
            6912,
            262144,
            normed="head",
            norms="both",
            **GEMMA,
        ),
        transformer("gpt_2", "GPT-2, Radford et al., 2019", 124439808, "causal", 768, 12, 12, 50257, length=1024, **GPT),
        transformer(
            "bert_base", "BERT, Devlin et al., NAACL 2019", 109482240, "padding", 768, 12, 12, 30522, length=512, **BERT
        ),
        Model("t5_base", "T5, Raffel et al., JMLR 2020", 12, every("t5_bias")),
        Model("deberta_v3_base", "DeBERTaV3, He et al., ICLR 2023", 12, every("deberta")),
        Model("modernbert_base", "ModernBERT, Warner et al., 2024", 22, (*every("full"), *every("local", times=2, reach=64))),
        transformer("bloom_7b", "BLOOM, 2022", 7069016064, "alibi", 4096, 30, 32, 250880, embedded=True, **GPT),
        Model("gpt_oss_20b", "gpt-oss, 2025", 24, (*every("sink_window", window=128), *every("sink"))),
        Model("deepseek_v3", "DeepSeek-V3, 2024", 61, every("mla_absorbed")),
        Model("kimi_linear", "Kimi Linear, 2025", 27, (*KIMI * 6, *KIMI[1:])),
        Model("qwen_3_next", "Qwen3-Next, 2025", 48, (*every("gated_delta_net", times=3), *every("gated_output"))),
        Model("minimax_01", "MiniMax-01, 2025", 80, (*every("retention", times=7), *every("gqa"))),
        Model("jamba", "Jamba, Lieber et al., 2024", 32, (*every("mamba", times=4), *every("gqa"), *every("mamba", times=3))),
        Model("retnet_1_3b", "RetNet, Sun et al., 2023", 24, every("retnet")),
        Model("mamba_130m", "Mamba, Gu and Dao, COLM 2024", 24, every("mamba")),
        Model("mamba_2_1_3b", "Mamba-2, Dao and Gu, ICML 2024", 48, every("ssd")),
        Model("rwkv_6", "RWKV-6, Peng et al., COLM 2024", 24, every("rwkv6")),
        Model("rwkv_7", "RWKV-7, Peng et al., 2025", 24, every("rwkv7")),
        Model("delta_net", "DeltaNet, Yang et al., NeurIPS 2024", 24, every("delta")),
        transformer("vit_b_16", "ViT, Dosovitskiy et al., ICLR 2021", 86567656, "full", 768, 12, 12, 1000, length=197, **VIT),
        Model("swin_t", "Swin, Liu et al., ICCV 2021", 12, (*every("swin_window"), *every("swin_window", shifted=True))),
        Model("maxvit_t", "MaxViT, Tu et al., ECCV 2022", 22, (*every("swin_window"), *every("grid"))),
        Model("davit_t", "DaViT, Ding et al., ECCV 2022", 12, (*every("swin_window"), *every("channel"))),
        Model("cswin_t", "CSWin, Dong et al., CVPR 2022", 25, (*every("cross_shaped", times=24), *every("full"))),
        Model("nat_mini", "NAT, Hassani et al., CVPR 2023", 18, every("neighborhood", kernel=7)),
    )
}
"""Every model by its name."""


def names() -> list[str]:
    """The names of all models."""
    return list(MODELS)


def model(name: str) -> Model:
    """The model of that name. Raises ValueError, with the nearest names, for one that there is not."""
    if name not in MODELS:
        import difflib

        near = difflib.get_close_matches(name, MODELS, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `einfuse models` lists them"
        raise ValueError(f"there is no model {name}{hint}")
    return MODELS[name]


def attention(name: str, layer: int = 0, *, backend: BackendName | None = None) -> einfuse.Attention:
    """The compiled attention of one layer of a model: ``attention("gemma_2_9b", 1)``."""
    found = model(name).layer(layer)
    return einfuse.compile(found.spec, backend=backend, **dict(found.params))


def build(name: str, *, backend: BackendName | None = None, small: bool = False) -> Decoder | Transformer:
    """The whole model with fresh weights; ``small``: the same kind, narrow and one pattern deep.

    Raises ValueError for a model of which only the attention is known here.
    """
    found = model(name)
    if found.shape is None:
        kinds = ", ".join(m.name for m in MODELS.values() if m.shape)
        raise ValueError(f"{name} cannot be built: its attention alone is known here; those that can are {kinds}")
    shape, pattern = found.shape, found.pattern
    if small:
        shape = replace(shape.small(), depth=max(2, len(pattern)))
        pattern = tuple(_narrower(layer) for layer in pattern)
    if isinstance(shape, Form):
        return KINDS[shape.task](shape, pattern, backend=backend)
    return Decoder(shape, pattern, backend=backend)


def _narrower(layer: Layer) -> Layer:
    return replace(layer, params=tuple((n, 5 if n == "window" else v) for n, v in layer.params))


def count(module: nn.Module) -> int:
    """How many parameters there are, what is shared once."""
    return sum(p.numel() for p in module.parameters())


def described(found: Sequence[Model]) -> list[tuple[str, str, str, str]]:
    """A row of each for a table: name, attention, parameters, paper."""
    return [(m.name, m.specs(), f"{m.parameters / 1e9:.2f} B" if m.parameters else "-", m.paper) for m in found]
