"""Random small models of transformers: logits and gradients beside the stock eager attention, padded batches included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import einfuse
from einfuse.integrations import transformers as integration
from einfuse.integrations.transformers import attention

transformers = pytest.importorskip("transformers", minversion="5")

pytestmark = pytest.mark.filterwarnings("ignore")  # the model library's own

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama() -> Any:
    return transformers.LlamaForCausalLM, transformers.LlamaConfig(**SMALL, **IDS, num_key_value_heads=2)


def mistral() -> Any:
    return transformers.MistralForCausalLM, transformers.MistralConfig(**SMALL, **IDS, num_key_value_heads=2, sliding_window=4)


def gemma2() -> Any:
    config = transformers.Gemma2Config(
        **SMALL,
        **IDS,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
    )
    return transformers.Gemma2ForCausalLM, config


def bert() -> Any:
    return transformers.BertForMaskedLM, transformers.BertConfig(
        **SMALL, attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0
    )


def pair(make: Callable[[], Any]) -> tuple[Any, Any]:
    """The same weights, eager and by einfuse. Gradients are on, dropout is off."""
    kind, config = make()
    torch.manual_seed(1)
    config._attn_implementation = "eager"
    stock = kind(config).eval()
    ours = kind(type(config)(**config.to_dict())).eval()
    ours.load_state_dict(stock.state_dict())
    ours.set_attn_implementation("einfuse")
    return stock, ours


@pytest.fixture(autouse=True)
def _registered() -> None:
    integration.register("einfuse", backend="torch")


def tokens(batch: int = 3, length: int = 9) -> torch.Tensor:
    return torch.randint(3, 40, (batch, length))


def padding(length: int = 9, left: bool = False) -> torch.Tensor:
    """Three rows of 9, 6 and 2 real tokens."""
    mask = torch.arange(length)[None] < torch.tensor([9, 6, 2])[:, None]
    return (mask.flip(1) if left else mask).long()


def compare(stock: Any, ours: Any, real: torch.Tensor, **inputs: torch.Tensor) -> None:
    """Logits of real tokens within 1e-4, and gradients of a loss on them for every parameter."""
    logits = [m(**inputs).logits for m in (stock, ours)]
    assert (logits[0] - logits[1])[real].abs().max() < 1e-4
    assert logits[0][real].abs().max() > 0.01, "logits of nothing agree trivially"
    direction = torch.randn_like(logits[0][real])
    grads = [
        torch.autograd.grad((x[real] * direction).sum(), [p for p in m.parameters() if p.requires_grad], allow_unused=True)
        for x, m in zip(logits, (stock, ours), strict=True)
    ]
    seen = 0
    for e, f in zip(*grads, strict=True):
        assert (e is None) == (f is None)
        if e is not None and f is not None:
            seen += 1
            torch.testing.assert_close(f, e, rtol=1e-3, atol=1e-4 * max(1.0, e.abs().max().item()))
    assert seen > 5


@pytest.mark.slow
@pytest.mark.parametrize("make", [llama, mistral, gemma2, bert], ids=lambda m: m.__name__)
@pytest.mark.parametrize("pad", ["none", "right", "left"])
def test_one_sequence_models(make: Callable[[], Any], pad: str) -> None:
    stock, ours = pair(make)
    mask = torch.ones(3, 9, dtype=torch.long) if pad == "none" else padding(left=pad == "left")
    given = {} if pad == "none" else {"attention_mask": mask}
    compare(stock, ours, mask.bool(), input_ids=tokens(), **given)


@pytest.mark.slow
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_t5_with_relative_bias_and_padding_on_both_sides(left: bool) -> None:
    """The source is padded, and so is what is decoded: self-attention and cross-attention each have a mask of their own."""

    def make() -> Any:
        config = transformers.T5Config(
            d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=40, dropout_rate=0.0, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration, config

    stock, ours = pair(make)
    source, target = padding(left=left), (torch.arange(7)[None] < torch.tensor([4, 7, 2])[:, None])
    target = target.flip(1) if left else target
    ids = {"input_ids": tokens(), "decoder_input_ids": tokens(3, 7)}
    compare(stock, ours, target, **ids, attention_mask=source, decoder_attention_mask=target.long())
    with torch.no_grad():
        whole = ours(**ids, attention_mask=torch.ones_like(source), decoder_attention_mask=target.long()).logits
        masked = ours(**ids, attention_mask=source, decoder_attention_mask=target.long()).logits
    assert (whole - masked)[1:].abs().max() > 1e-3, "the source's padding is seen by nobody"


@pytest.mark.slow
def test_vit() -> None:
    def make() -> Any:
        sizes = {k: v for k, v in SMALL.items() if k != "vocab_size"}
        config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=5)
        return transformers.ViTForImageClassification, config

    stock, ours = pair(make)
    compare(stock, ours, torch.ones(2, dtype=torch.bool), pixel_values=torch.randn(2, 3, 16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("pad", ["none", "right", "left"])
def test_whisper_with_cross_attention(pad: str) -> None:
    def make() -> Any:
        config = transformers.WhisperConfig(
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            vocab_size=40,
            num_mel_bins=8,
            max_source_positions=10,
            max_target_positions=16,
            decoder_start_token_id=1,
            **IDS,
        )
        return transformers.WhisperForConditionalGeneration, config

    stock, ours = pair(make)
    real = torch.arange(6)[None] < torch.tensor([6, 3 if pad != "none" else 6])[:, None]
    real = real.flip(1) if pad == "left" else real
    given = {} if pad == "none" else {"decoder_attention_mask": real.long()}
    compare(stock, ours, real, input_features=torch.randn(2, 8, 20), decoder_input_ids=tokens(2, 6), **given)


@pytest.mark.slow
def test_generation_with_a_cache_says_the_same() -> None:
    stock, ours = pair(mistral)
    ids, mask = tokens(), padding(left=True)
    texts = [m.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False).tolist() for m in (stock, ours)]
    assert texts[0] == texts[1]
    assert len({*texts[0][0][9:]} | {*texts[0][1][9:]}) > 1


def test_kernels_read_no_mask_of_pairs_beside_a_causal_window() -> None:
    """What reaches the kernel is the padding alone, Nk booleans a row; causality and the window are formulas of the spec."""
    _, ours = pair(mistral)
    seen: list[dict[str, tuple[int, ...]]] = []
    visible = attention._visible

    def looking(module: Any, mask: Any, *rest: Any) -> Any:
        found = visible(module, mask, *rest)
        seen.append({n: tuple(x.shape) for n, x in found.tensors.items()})
        return found

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(attention, "_visible", looking)
        ours(input_ids=tokens(), attention_mask=padding())
    assert seen == [{"pad": (3, 9)}] * 2


@pytest.mark.slow
def test_packed_sequences_come_as_booleans() -> None:
    stock, ours = pair(llama)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])
    ids = tokens(1)
    with torch.no_grad():
        expected, found = (m(input_ids=ids, position_ids=positions, use_cache=False).logits for m in (stock, ours))
        apart = ours(input_ids=ids[:, 4:7], use_cache=False).logits
    assert (expected - found).abs().max() < 1e-4
    assert (found[:, 4:7] - apart).abs().max() < 1e-4


OWN = """
attention mine over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  PAD
  s = sum[d](q * k) / sqrt(D) where j <= i
  o[i, e] = sum[j](relu(s)^2 / count[j](s) * v)
  out o
}
"""


def test_a_spec_of_ones_own_replaces_the_mechanism() -> None:
    """Squared ReLU attention in a Llama: what the layer computes is the formula."""
    integration.register("mine", OWN.replace("PAD", ""), backend="torch")
    _, model = pair(llama)
    model.set_attn_implementation("mine")
    layer = model.model.layers[0].self_attn
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    attend = transformers.AttentionInterface()["mine"]
    found, weights = attend(layer, q, k, v, None, scaling=8**-0.5, dropout=0.0)
    scores = (q @ k.repeat_interleave(2, 1).mT / 8**0.5).relu().square().tril() / torch.arange(1, 6)[:, None]
    torch.testing.assert_close(found.transpose(1, 2), scores @ v.repeat_interleave(2, 1))
    assert found.is_contiguous(), "models (AFMoE) take views of what sdpa gives"
    assert weights is None
    assert torch.isfinite(model(input_ids=tokens()).logits).all()
    with pytest.raises(ValueError, match="mine: the batch is padded"):
        model(input_ids=tokens(), attention_mask=padding())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_attentions": True}, "never holds the attention weights"),
        ({"attention_mask": torch.ones(2, 1, 5, 7)}, r"must broadcast to \[2, 4, 5, 5\], found \[2, 1, 5, 7\]"),
    ],
    ids=["weights", "mask"],
)
def test_what_cannot_be_done_is_said(options: dict[str, Any], message: str) -> None:
    attend = transformers.AttentionInterface()["einfuse"]
    q, k, v = (torch.randn(2, 4, 5, 8) for _ in range(3))
    with pytest.raises(ValueError, match=message):
        attend(torch.nn.Module(), q, k, v, **{"attention_mask": None} | options)


def test_a_number_that_the_spec_lacks_is_named() -> None:
    spec = einfuse.compile("causal", backend="torch")
    integration.register("plain", spec)
    attend = transformers.AttentionInterface()["plain"]
    q, k, v = (torch.randn(2, 4, 5, 8) for _ in range(3))
    with pytest.raises(ValueError, match="causal: the model bends its scores by a softcap"):
        attend(torch.nn.Module(), q, k, v, None, softcap=30.0)
    with pytest.raises(ValueError, match="causal: the model gives bias"):
        attend(torch.nn.Module(), q, k, v, None, position_bias=torch.zeros(1, 4, 5, 5))


ATTEND_THEMSELVES = [
    ("Bloom", "BloomForCausalLM", {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 4}),
    ("Mpt", "MptForCausalLM", {"vocab_size": 64, "d_model": 32, "n_layers": 1, "n_heads": 4}),
    *(
        (name, f"{name}Model", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64})
        for name in ("MPNet", "RoFormer", "MegatronBert", "RemBert")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "model", "sizes"), ATTEND_THEMSELVES, ids=[x[0] for x in ATTEND_THEMSELVES])
def test_models_that_compute_attention_themselves_are_refused(config: str, model: str, sizes: dict[str, int]) -> None:
    """As "sdpa" is: they would add our booleans to scores, or drop causality. Refused where the name is chosen, before or after."""
    integration.register("einfuse")
    made, of = getattr(transformers, f"{config}Config"), getattr(transformers, model)
    with pytest.raises(ValueError, match=f"{model} does not support attn_implementation=.einfuse."):
        of._from_config(made(**sizes), attn_implementation="einfuse")
    eager = of._from_config(made(**sizes), attn_implementation="eager")
    with pytest.raises(ValueError, match="eager"):
        eager.set_attn_implementation("einfuse")


def test_a_mask_without_its_pattern_is_right() -> None:
    """`generate` clones the masks of a static cache, or passes them to the model's own mask call: the booleans say it all."""
    from transformers.masking_utils import causal_mask_function

    from einfuse.integrations.transformers.masks import MARK, mask

    pad = torch.tensor([[True] * 7, [False] * 2 + [True] * 5])
    made = mask(2, 3, 7, 4, mask_function=causal_mask_function, attention_mask=pad)
    seen = torch.ones(7, 7, dtype=torch.bool).tril()[4:] & pad[:, None, None, :]
    assert hasattr(made, MARK)
    assert not hasattr(made.clone(), MARK)
    live = seen.any(-1)  # transformers lets a row of padding see every key
    assert torch.equal(made.expand_as(seen)[live], seen[live])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Mistral", "Gemma2"])
def test_a_static_cache_with_a_sliding_window_gives_the_tokens_of_eager(kind: str) -> None:
    integration.register("einfuse")
    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    extra = {"head_dim": 16} if kind == "Gemma2" else {}
    config = getattr(transformers, f"{kind}Config")(**sizes, **extra, num_key_value_heads=2, pad_token_id=0, sliding_window=6)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    for p in model.parameters():
        if p.ndim == 2:
            p.data.mul_(3)  # so that tokens differ
    ids = torch.randint(3, 128, (1, 11))
    found = []
    for name in ("eager", "einfuse"):
        model.set_attn_implementation(name)
        given = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": 12}
        found.append(model.generate(input_ids=ids, **given, cache_implementation="static").tolist())
    assert found[0] == found[1]


@pytest.mark.slow
def test_a_mask_of_one_column_is_seen_by_every_key() -> None:
    """MiniMax asks its cache for the length of a layer that keeps no keys: in decoding its mask is [b, 1, 1, 1], and sdpa broadcasts it."""
    config = transformers.MiniMaxConfig(
        **SMALL,
        pad_token_id=0,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
        block_size=8,
        layer_types=["linear_attention", "full_attention"],
    )
    torch.manual_seed(0)
    model = transformers.MiniMaxForCausalLM(config).eval()
    ids, found = tokens(2), []
    for name in ("sdpa", "einfuse"):
        model.set_attn_implementation(name)
        given = {"return_dict_in_generate": True, "output_logits": True, "do_sample": False, "eos_token_id": -1}
        found.append(torch.stack(model.generate(input_ids=ids, max_new_tokens=4, **given).logits))
    torch.testing.assert_close(found[1], found[0])
