"""Models by name: what their layers attend with, as many parameters as were released, and the numbers of `transformers` with its weights."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from einfuse.cli import main
from einfuse.library import models
from einfuse.library.models import named
from einfuse.library.models.text_llama import predict

WHOLE = [m.name for m in named.MODELS.values() if m.shape is not None]
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_2_7b": ("Llama", {}),
    "llama_3_1_8b": ("Llama", {}),
    "mistral_7b": ("Mistral", {"sliding_window": 5}),
    "qwen_2_5_0_5b": ("Qwen2", {}),
    "qwen_3_8b": ("Qwen3", {}),
    "olmo_2_7b": ("Olmo2", {}),
    "gemma_7b": ("Gemma", {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma_2_27b": ("Gemma2", {"sliding_window": 5, "query_pre_attn_scalar": 24, "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma_3_1b": ("Gemma3Text", {"sliding_window": 5, "query_pre_attn_scalar": 16, "hidden_activation": "gelu_pytorch_tanh"}),
}
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
    first = found.model.layers[0].self_attn
    assert isinstance(first, torch.nn.Module)
    shape, pattern = first.shape, models.model(name).pattern
    rope = pattern[-1].rotation
    assert isinstance(shape, named.Shape)
    assert rope is not None
    scaling = {"rope_type": "default", "rope_theta": rope.base}
    if rope.by_wavelength:
        more = {"rope_type": "llama3", "factor": rope.factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        scaling |= {**more, "original_max_position_embeddings": 8192}
    if name.startswith("gemma_3"):
        local = {"rope_type": "default", "rope_theta": 10000.0}
        scaling = {"full_attention": scaling, "sliding_attention": local}
    return {
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


@pytest.mark.parametrize("name", PEERS)
def test_weights_of_transformers_give_its_numbers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, more = PEERS[name]
    peer_config = getattr(transformers, f"{kind}Config")(**config(name), **more)
    torch.manual_seed(0)
    peer = getattr(transformers, CLASSES.get(kind, f"{kind}ForCausalLM"))(peer_config).eval().double()
    with torch.no_grad():
        for p in peer.parameters():
            p.add_(torch.randn_like(p) * 0.1)  # fresh norms and biases would hide a fault
    ours = models.build(name, small=True, backend="torch").double()
    ours.load_state_dict(peer.state_dict())
    tokens = torch.randint(0, 256, (2, 19))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), peer(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_a_small_one_learns(name: str) -> None:
    """Bytes of the standard library: the loss of one batch falls, and a gradient reaches every parameter."""
    torch.manual_seed(0)
    task = predict(name, models.build(name, small=True, backend="torch"), 12, 2, 5)
    optimiser = torch.optim.Adam(task.model.parameters(), 3e-3)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = task.loss(torch.Generator().manual_seed(7))
        loss.backward()  # type: ignore[no-untyped-call]  # torch's is not typed
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    assert [n for n, p in task.model.named_parameters() if p.grad is None] == []
