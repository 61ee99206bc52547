"""Rewrites of models: exact where they say so, and what they leave out is what they measured."""

from __future__ import annotations

import copy

import pytest
import torch
from narrowed import weight
from torch import Tensor, nn
from torch.nn import functional as F

from einfuse.library.layers import Attending, TransformerBlock
from einfuse.library.models import rewrites


class Reader(nn.Module):
    """Words and places, blocks before whose parts norms stand, a norm, and a head that shares the table of words."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 8), nn.Parameter(torch.randn(5, 8))
        self.blocks = nn.ModuleList(TransformerBlock(8, Attending(8, 2, "causal", backend="torch")) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        self.head.weight = self.words.weight
        with torch.no_grad():
            for p in self.parameters():
                p.add_(torch.randn(p.shape), alpha=0.3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


WORDS = torch.tensor([[1, 4, 9, 2, 2], [0, 10, 3, 7, 5]])
WRITES = ("words", "places", "blocks.*.attention.out", "blocks.*.after.3")
NORMS = ("blocks.*.norm", "blocks.*.after.0", "norm")


def run(model: nn.Module) -> Tensor:
    return model(WORDS)  # type: ignore[no-any-return]


def test_norms_without_a_mean_are_exact() -> None:
    torch.manual_seed(0)
    model = Reader().double()
    out = rewrites.pre_rms_norm(model, WRITES, NORMS, run)
    torch.testing.assert_close(run(out), run(model), rtol=1e-10, atol=1e-10)
    assert not any(isinstance(m, nn.LayerNorm) for m in out.modules())
    stream = out.get_submodule("words")(WORDS) + out.get_parameter("places")
    torch.testing.assert_close(stream.mean(-1), torch.zeros(2, 5).double(), rtol=0, atol=1e-12)
    assert torch.equal(out.get_parameter("head.weight"), model.head.weight), "the head keeps the table as it was"
    before, after = (torch.autograd.grad(run(m)[0, 0, 0], m.get_parameter("head.weight"))[0] for m in (model, out))
    assert before.shape == after.shape


@pytest.mark.parametrize("left_out", [WRITES[0], WRITES[1], WRITES[2], WRITES[3]])
def test_a_part_of_the_stream_that_is_not_named_is_found(left_out: str) -> None:
    torch.manual_seed(0)
    writes = [w for w in WRITES if w != left_out]
    with pytest.raises(ValueError, match="the stream has a mean, or is read where it is not normalised: outputs are"):
        rewrites.pre_rms_norm(Reader(1), writes, NORMS, run)


def test_names_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match=r"in the model is called blocks\.\*\.mlp"):
        rewrites.without(Reader(1), ["blocks.*.mlp"])
    with pytest.raises(ValueError, match=r"a LayerNorm over one axis was expected at head, found Linear"):
        rewrites.pre_rms_norm(Reader(1), WRITES, ["head"], run)
    with pytest.raises(ValueError, match=r"a linear map, a convolution or an embedding was expected at norm, found Layer"):
        rewrites.pre_rms_norm(Reader(1), ["norm"], NORMS, run)


def test_layers_that_change_little_are_left_out() -> None:
    torch.manual_seed(0)
    model = Reader()
    with torch.no_grad():
        model.get_parameter("blocks.1.attention.out.weight").mul_(1e-3)
        model.get_parameter("blocks.1.attention.out.bias").mul_(1e-3)
    scores = rewrites.redundancy(model, ["blocks.*.norm"], ["blocks.*.attention"], run)
    x, expected = model.words(WORDS) + model.places, {}
    for n, block in enumerate(model.blocks):
        assert isinstance(block, TransformerBlock)
        a = block.attention(block.norm(x))
        angle = (x * (x + a)).sum(-1) / (x.norm(dim=-1) * (x + a).norm(dim=-1))
        expected[f"blocks.{n}.attention"] = (1 - angle).mean().item()
        x = block(x)
    assert scores == pytest.approx(expected, abs=1e-6)
    least = min(scores, key=scores.__getitem__)
    assert least == "blocks.1.attention"
    out = rewrites.without(model, [least])
    torch.testing.assert_close(run(out), run(model), rtol=0, atol=0.05)
    other = rewrites.without(model, ["blocks.0.attention"])
    assert (run(other) - run(model)).abs().max() > 0.5
    assert not model.get_submodule("blocks.0")._forward_hooks, "hooks are taken off"


@pytest.mark.parametrize("rank", [8, 2])
def test_one_block_with_corrections(rank: int) -> None:
    """Of full rank it is the stack itself; of a lower one, the stack whose matrices are the nearest of that rank from their mean."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(3)]
    x = torch.randn(4, 8)
    expected = copy.deepcopy(blocks)
    with torch.no_grad():
        for n in (0, 2):
            mean = torch.stack([weight(b[n]) for b in blocks]).mean(0)
            for b in expected:
                u, s, v = torch.linalg.svd(weight(b[n]) - mean)
                weight(b[n]).copy_(mean + u[:, :rank] * s[:rank] @ v[:rank])
    stack = rewrites.RecursiveStack.of(blocks, rank)
    torch.testing.assert_close(stack(x), nn.Sequential(*expected)(x), rtol=1e-4, atol=1e-5)
    fresh = rewrites.RecursiveStack(blocks[0], 2, 3)
    torch.testing.assert_close(fresh(x), blocks[0](blocks[0](x)))
    fresh(x).square().mean().backward()
    assert all(p.grad is not None for p in fresh.up)


def test_a_vision_transformer_of_transformers() -> None:
    """Its class token and places are tables, its patches a convolution."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **sizes), add_pooling_layer=False).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape), alpha=0.2)
    image = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    writes = ["embeddings.cls_token", "embeddings.position_embeddings", "*.projection"]
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == 16]
    adds = [n for n in linear if not any(w in n for w in ("query", "key", "value", "q_proj", "k_proj", "v_proj"))]
    out = rewrites.pre_rms_norm(model, [*writes, *adds], ["*layernorm*"], lambda m: m(image).last_hidden_state)
    assert sum(isinstance(m, rewrites.RootMeanSquareNorm) for m in out.modules()) == 5
    assert F.mse_loss(out.double()(image).last_hidden_state, model.double()(image).last_hidden_state) < 1e-11
