"""Models by name: what their layers attend with, as many parameters as were released, and the numbers of `transformers` with its weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional

from einfuse.cli import main
from einfuse.library import models
from einfuse.library.models import named
from einfuse.library.models.decoder import Shape
from einfuse.library.models.text_llama import predict
from einfuse.library.models.transformer import Classifier, Encoder, Form, renamed

WHOLE = [m.name for m in named.MODELS.values() if m.shape is not None]
DECODERS = [name for name in WHOLE if isinstance(named.MODELS[name].shape, Shape)]
OTHERS = [name for name in WHOLE if name not in DECODERS]
WINDOW, GELU = {"sliding_window": 5}, {"hidden_activation": "gelu_pytorch_tanh"}
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", WINDOW),
    "qwen_2_5": ("Qwen2", {}),
    "qwen_3": ("Qwen3", {}),
    "olmo_2": ("Olmo2", {}),
    "gemma_7b": ("Gemma", GELU),
    "gemma_2": ("Gemma2", WINDOW | GELU),
    "gemma_3": ("Gemma3Text", WINDOW | GELU),
}
"""What `transformers` calls a family of decoders; the others are its Llama."""
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}


def test_the_command_lists_what_a_query_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "gemma_2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["models"]
    assert {m["name"] for m in found} >= {"gemma_2_27b"}
    assert all("gemma_2" in " ".join(m.values()) for m in found)
    assert main(["models", "of no kind"]) == 0
    assert "no model has" in capsys.readouterr().out


def test_models_are_listed_and_found() -> None:
    assert len(models.names()) >= 24
    for name in models.names():
        found = models.model(name)
        assert found.name == name
        assert found.paper.split()[-1].isdigit()
        for n in range(min(found.depth, len(found.pattern))):
            assert models.attention(name, n, backend="torch").name == found.layer(n).spec
    assert models.model("gemma_2_9b").specs() == "1 softcap_window, 1 softcap"
    assert models.model("kimi_linear").specs().endswith("3 kda, 1 mla_absorbed, 2 kda, 1 mla_absorbed")
    assert models.attention("gemma_3_1b", 11, backend="torch").name == "gqa"
    with pytest.raises(ValueError, match="there is no model gema_2_9b; did you mean gemma_2_9b or"):
        models.model("gema_2_9b")
    with pytest.raises(ValueError, match="gpt_2 has 12 layers, from 0 on, found 12"):
        models.attention("gpt_2", 12)
    with pytest.raises(ValueError, match="rwkv_7 cannot be built: its attention alone is known here"):
        models.build("rwkv_7")


@pytest.mark.parametrize("name", WHOLE)
def test_there_are_as_many_parameters_as_were_released(name: str) -> None:
    with torch.device("meta"):
        assert named.count(models.build(name)) == models.model(name).parameters


def config(name: str) -> dict[str, Any]:
    """The sizes of the small model as `transformers` names them."""
    found = models.build(name, small=True, backend="torch")
    first = found.get_submodule("model.layers.0.self_attn")
    shape, pattern = first.shape, models.model(name).pattern
    rope = pattern[-1].rotation
    assert isinstance(shape, Shape)
    assert rope is not None
    scaling = {"rope_type": "default", "rope_theta": rope.base}
    if rope.by_wavelength:
        more = {"rope_type": "llama3", "factor": rope.factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaling |= {**more, "original_max_position_embeddings": 8192}
    if name.startswith("gemma_3"):
        local = {"rope_type": "default", "rope_theta": 10000.0}
        scaling = {"full_attention": scaling, "sliding_attention": local}
    scale = {"query_pre_attn_scalar": int(shape.scale) or shape.per_head()} if name.startswith("gemma_") else {}
    return scale | {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.per_head(),
        "intermediate_size": shape.hidden,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": shape.epsilon,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": scaling,
        "attn_implementation": "eager",
        "pad_token_id": 0,
    }


def shaken(peer: torch.nn.Module) -> torch.nn.Module:
    """In double precision, every weight moved: fresh norms and biases would hide a fault."""
    peer = peer.eval().double()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return peer


@pytest.mark.parametrize("name", DECODERS)
def test_weights_of_transformers_give_its_numbers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, more = next((peer for family, peer in PEERS.items() if name.startswith(family)), ("Llama", {}))
    peer_config = getattr(transformers, f"{kind}Config")(**config(name), **more)
    peer = shaken(getattr(transformers, CLASSES.get(kind, f"{kind}ForCausalLM"))(peer_config))
    ours = models.build(name, small=True, backend="torch").double()
    ours.load_state_dict(peer.state_dict())
    tokens = torch.randint(0, 256, (2, 19))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), peer(tokens).logits, rtol=1e-5, atol=1e-5)


def other_peer(name: str) -> torch.nn.Module:
    """The small model of `transformers`."""
    import transformers

    eager: dict[str, Any] = {"attn_implementation": "eager"}
    text, image = eager | {"vocab_size": 256}, eager | {"image_size": 8, "patch_size": 4, "num_labels": 10}
    wide: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0}
    if name == "gpt_2":
        sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **text, **ends))
    if name == "bloom_7b":
        return transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=2, **text, **ends))
    if name == "bert_base":
        return transformers.BertModel(transformers.BertConfig(max_position_embeddings=32, **wide, **text))
    assert name == "vit_b_16", f"no peer of {name} is known"
    return transformers.ViTForImageClassification(transformers.ViTConfig(**wide, **image))


@pytest.mark.parametrize("name", OTHERS)
def test_renamed_weights_of_transformers_give_its_numbers(name: str) -> None:
    pytest.importorskip("transformers")
    peer, ours = shaken(other_peer(name)), models.build(name, small=True, backend="torch").double()
    form = ours.form
    assert isinstance(form, Form)
    ours.load_state_dict(renamed(peer.state_dict(), form.heads))
    tokens = torch.randint(0, 256, (2, 19))
    with torch.no_grad():
        if isinstance(ours, Classifier):
            images = torch.randn(3, 3, 8, 8).double()
            pairs = [(ours(images), peer(images).logits)]
        elif isinstance(ours, Encoder):
            pad, segments = torch.arange(19) < torch.tensor([[19], [13]]), (torch.arange(19) > 8).long().expand(2, 19)
            wanted = peer(tokens, attention_mask=pad.long(), token_type_ids=segments)
            states, summary = ours(tokens, pad, segments)
            pairs = [(states[pad], wanted.last_hidden_state[pad]), (summary, wanted.pooler_output)]
        else:
            pairs = [(ours(tokens), peer(tokens).logits)]
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(KeyError, match=r"h\.0\.experts\.weight is no part of GPT-2"):
        renamed({"h.0.experts.weight": torch.zeros(1)}, 2)
    with pytest.raises(ValueError, match="there are 32 positions, found 33 tokens"):
        models.build("gpt_2", small=True, backend="torch")(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(ValueError, match="images must have 4 patches, found 6"):
        models.build("vit_b_16", small=True, backend="torch")(torch.zeros(1, 3, 8, 12))


def objective(name: str, model: torch.nn.Module) -> Callable[[], torch.Tensor]:
    """The loss that such a model is trained by, of one batch."""
    if isinstance(model, Classifier):
        images, classes = torch.randn(4, 3, 8, 8), torch.arange(4)
        return lambda: functional.cross_entropy(model(images), classes)
    if not isinstance(model, Encoder):
        task = predict(name, model, 12, 2, 5)
        return lambda: task.loss(torch.Generator().manual_seed(7))
    tokens, order = torch.randint(1, 256, (2, 12)), torch.arange(2)
    hidden, segments = tokens.masked_fill(torch.arange(12) % 4 == 3, 0), (torch.arange(12) > 5).long().expand(2, 12)

    def masked_and_next() -> torch.Tensor:
        states, summary = model(hidden, segments=segments)
        logits = states @ model.tokens.weight.T
        return functional.cross_entropy(logits[hidden == 0], tokens[hidden == 0]) + functional.cross_entropy(summary, order)

    return masked_and_next


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Models so small wait for a second thread longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.usefixtures("_one_thread")
def test_a_small_one_learns(name: str) -> None:
    """The loss of one batch, of bytes of the standard library where it is text, falls, and a gradient reaches every parameter."""
    torch.manual_seed(0)
    model = models.build(name, small=True, backend="torch")
    loss_of, optimiser = objective(name, model), torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
