"""Transformers of the first kind: layer norms, biases, and a network of two maps; `renamed` takes the weights of `transformers`.

    x + attention(norm x), then x + network(norm x); BERT's norms stand behind the sums

GPT-2 and BLOOM predict the next token, BERT encodes a text that may be padded, ViT classifies images. What a layer attends to is its spec.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from einfuse.library.layers.common import BackendName, merge, single, sized, split, table
from einfuse.library.layers.language import alibi_slopes
from einfuse.library.models.decoder import Layer


@dataclass(frozen=True, slots=True)
class Form:
    """Everything that such a model is made of beside what its layers attend to."""

    width: int
    depth: int
    heads: int
    hidden: int
    outputs: int  # of the vocabulary, or classes of images
    length: int = 0  # of the table of positions; 0: none
    task: Literal["predict", "encode", "classify"] = "predict"
    norms: Literal["before", "behind"] = "before"
    embedded: bool = False  # embeddings are normalised
    patch: int = 0  # the side of one, of images
    gelu: Literal["none", "tanh"] = "none"  # the approximation
    epsilon: float = 1e-12

    def small(self) -> Form:
        """The same kind, narrow and two layers deep."""
        length, outputs, patch = (5, 10, 4) if self.patch else (self.length and 32, 256, 0)
        return replace(self, width=32, depth=2, heads=2, hidden=128, length=length, outputs=outputs, patch=patch)


class Block(nn.Module):
    def __init__(self, form: Form, layer: Layer, backend: BackendName | None) -> None:
        super().__init__()
        self.form, self.layer, self.backend = form, layer, backend
        self.query, self.key, self.value, self.out = (nn.Linear(form.width, form.width) for _ in range(4))
        self.up, self.down = nn.Linear(form.width, form.hidden), nn.Linear(form.hidden, form.width)
        self.act = nn.GELU(form.gelu)
        self.attention_norm, self.network_norm = (nn.LayerNorm(form.width, form.epsilon) for _ in range(2))

    def attention(self, x: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        q, k, v = (split(part(x), self.form.heads) for part in (self.query, self.key, self.value))
        attention = sized(self.layer.spec, self.backend, **dict(self.layer.params))
        return self.out(merge(single(attention(q, k, v, **given))))  # type: ignore[no-any-return]

    def network(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.up(x)))  # type: ignore[no-any-return]

    def forward(self, x: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if self.form.norms == "behind":
            x = self.attention_norm(x + self.attention(x, given))
            return self.network_norm(x + self.network(x))  # type: ignore[no-any-return]
        x = x + self.attention(self.attention_norm(x), given)
        return x + self.network(self.network_norm(x))


class Transformer(nn.Module):
    """Blocks between two norms, either of which may be missing; a subclass embeds before them and reads behind them."""

    def __init__(self, form: Form, pattern: tuple[Layer, ...], *, backend: BackendName | None = None) -> None:
        super().__init__()
        self.form = form
        self.blocks = nn.ModuleList(Block(form, pattern[n % len(pattern)], backend) for n in range(form.depth))
        self.positions = table(form.length, form.width) if form.length else None
        self.embedding_norm = nn.LayerNorm(form.width, form.epsilon) if form.embedded else nn.Identity()
        self.norm = nn.LayerNorm(form.width, form.epsilon) if form.norms == "before" else nn.Identity()

    def states(self, x: torch.Tensor, **given: torch.Tensor) -> torch.Tensor:
        """Embeddings [B, N, C] -> states [B, N, C]. Raises ValueError where there are more of them than positions."""
        if self.positions is not None:
            if x.shape[1] > len(self.positions):
                raise ValueError(f"there are {len(self.positions)} positions, found {x.shape[1]} tokens")
            x = x + self.positions[: x.shape[1]]
        x = self.embedding_norm(x)
        for block in self.blocks:
            x = block(x, given)
        return self.norm(x)  # type: ignore[no-any-return]


class Predictor(Transformer):
    """Tokens [B, N] -> logits of the next one [B, N, vocabulary] (GPT-2, BLOOM); the head is the embedding."""

    def __init__(self, form: Form, pattern: tuple[Layer, ...], *, backend: BackendName | None = None) -> None:
        super().__init__(form, pattern, backend=backend)
        self.tokens, self.head = nn.Embedding(form.outputs, form.width), nn.Linear(form.width, form.outputs, False)
        nn.init.trunc_normal_(self.tokens.weight, std=0.02)
        self.head.weight = self.tokens.weight
        self.biased = any(layer.spec == "alibi" for layer in pattern)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        given = {"slope": slopes(self.form.heads).to(x)} if self.biased else {}
        return self.head(self.states(x, **given))  # type: ignore[no-any-return]


class Encoder(Transformer):
    """Tokens [B, N] -> states [B, N, C] and the first one's summary [B, C] (BERT); pad [B, N] is true where a token is real."""

    def __init__(self, form: Form, pattern: tuple[Layer, ...], *, backend: BackendName | None = None) -> None:
        super().__init__(form, pattern, backend=backend)
        self.tokens, self.segments = nn.Embedding(form.outputs, form.width), nn.Embedding(2, form.width)
        self.pooler = nn.Linear(form.width, form.width)

    def forward(
        self, tokens: torch.Tensor, pad: torch.Tensor | None = None, segments: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pad = torch.ones_like(tokens, dtype=torch.bool) if pad is None else pad
        segments = torch.zeros_like(tokens) if segments is None else segments
        states = self.states(self.tokens(tokens) + self.segments(segments), pad=pad)
        return states, self.pooler(states[:, 0]).tanh()


class Classifier(Transformer):
    """Images [B, 3, height, width] -> logits of their classes [B, classes], read from a first token of no patch (ViT)."""

    def __init__(self, form: Form, pattern: tuple[Layer, ...], *, backend: BackendName | None = None) -> None:
        super().__init__(form, pattern, backend=backend)
        self.patches, self.first = nn.Conv2d(3, form.width, form.patch, form.patch), table(1, 1, form.width)
        self.head = nn.Linear(form.width, form.outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(images), -1, -1), patches], 1)
        if x.shape[1] != self.form.length:
            raise ValueError(f"images must have {self.form.length - 1} patches, found {x.shape[1] - 1}")
        return self.head(self.states(x)[:, 0])  # type: ignore[no-any-return]


KINDS: dict[str, type[Transformer]] = {"predict": Predictor, "encode": Encoder, "classify": Classifier}


def slopes(heads: int) -> torch.Tensor:
    """The biases of BLOOM, [heads]. Raises ValueError for heads that are no power of two, for which it has another series."""
    if heads & (heads - 1):
        raise ValueError(f"slopes are for a power of two of heads, found {heads}")
    return alibi_slopes(heads, torch.float64)


# What `transformers` calls a part, and what it is called here; the first that fits is taken.
NAMES = [
    (r"wte|embeddings\.word_embeddings|word_embeddings(?!_)", "tokens"),
    (r"wpe\.weight|embeddings\.position_embeddings(\.weight)?", "positions"),
    (r"embeddings\.token_type_embeddings", "segments"),
    (r"embeddings\.cls_token", "first"),
    (r"embeddings\.patch_embeddings\.projection", "patches"),
    (r"embeddings\.LayerNorm|word_embeddings_layernorm", "embedding_norm"),
    (r"ln_f|layernorm", "norm"),
    (r"pooler\.dense", "pooler"),
    (r"lm_head|classifier", "head"),
    (r"attn\.c_attn|self_attention\.query_key_value", "query, key, value"),
    (r"attention\.self\.query|attention\.q_proj", "query"),
    (r"attention\.self\.key|attention\.k_proj", "key"),
    (r"attention\.self\.value|attention\.v_proj", "value"),
    (r"attn\.c_proj|attention\.output\.dense|attention\.o_proj|self_attention\.dense", "out"),
    (r"ln_1|attention\.output\.LayerNorm|layernorm_before|input_layernorm", "attention_norm"),
    (r"ln_2|output\.LayerNorm|layernorm_after|post_attention_layernorm", "network_norm"),
    (r"mlp\.c_fc|intermediate\.dense|mlp\.fc1|mlp\.dense_h_to_4h", "up"),
    (r"mlp\.c_proj|output\.dense|mlp\.fc2|mlp\.dense_4h_to_h", "down"),
]


def renamed(state: Mapping[str, torch.Tensor], heads: int) -> dict[str, torch.Tensor]:
    """A state dict of `transformers` under the names of a `Transformer` with so many heads. Raises KeyError for a part of no such model.

    GPT-2 keeps its maps transposed, and queries, keys and values in one; BLOOM keeps those in one by heads.
    """
    ours: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        place, part, end = re.fullmatch(
            r"(?:transformer\.|vit\.)?((?:h|encoder\.layer|layers)\.\d+\.)?(.+?)(\.weight|\.bias)?", name
        ).groups(default="")  # type: ignore[union-attr]  # every name fits
        block = re.sub(r".*?(\d+\.)$", r"blocks.\1", place)
        called = next((new for old, new in NAMES if re.fullmatch(old, part) or re.fullmatch(old, part + end)), None)
        if called is None:
            raise KeyError(f"{name} is no part of GPT-2, BLOOM, BERT or ViT")
        if re.search(r"\.c_", name):
            value = value.mT if value.ndim == 2 else value
        if called == "positions":
            ours[called] = value.reshape(value.shape[-2:])
        elif called == "query, key, value":
            by_heads = value.unflatten(0, (heads, 3, -1)).movedim(1, 0).flatten(1, 2)
            parts = by_heads if part.startswith("self_attention") else value.chunk(3)
            ours |= {block + n + end: p for n, p in zip(called.split(", "), parts, strict=True)}
        else:
            ours[block + called + end] = value
    return ours
