"""What `report` says of the attentions of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import einfuse
from einfuse import integrations


class SelfAttention(nn.Module):
    """Computes its weights itself."""


class Block(nn.Module):
    """A block of other modules."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


class AttentionBlock(Block):
    """Named for attention, which a part of it computes."""


class Switched(nn.Module):
    """A module with timm's switch."""

    fused_attn = True


class Layer(nn.Module):
    """A layer of einfuse."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = einfuse.compile("causal", backend="torch")


def said(model: nn.Module) -> dict[str, tuple[bool, str]]:
    return {x.name: (x.replaced, x.why) for x in integrations.report(model)}


def test_every_attention_is_named_once_and_its_reason() -> None:
    model = Block(AttentionBlock(SelfAttention()), Switched(), nn.MultiheadAttention(8, 2), Layer(), nn.Linear(2, 2))
    found = said(model)
    assert list(found) == ["parts.0.parts.0", "parts.1", "parts.2", "parts.3"]
    assert [x for x, _ in found.values()] == [False, False, False, True]
    assert found["parts.0.parts.0"][1] == "computes its weights by its own code"
    text = str(integrations.report(model))
    assert text.startswith("einfuse computes 1 of 4 attentions\nparts.0.parts.0  SelfAttention ")
    assert str(integrations.report(nn.Linear(2, 2))) == "einfuse computes 0 of 0 attentions"


@pytest.mark.filterwarnings("ignore")  # the model library's own
def test_models_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", minversion="5")
    integrations.transformers.register("einfuse")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}

    def of(name: str, **more: Any) -> Any:
        return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes, **more))

    model = of("Llama")
    assert len(integrations.report(model).left) == 2
    assert 'set_attn_implementation("einfuse") would replace it' in integrations.report(model)[0].why
    model.set_attn_implementation("einfuse")
    report = integrations.report(model)
    assert [x.name for x in report.replaced] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert report.left == ()
    with torch.no_grad():
        model(input_ids=torch.ones(1, 3, dtype=torch.long))  # a report of what is called
    found = said(of("MPNet"))
    assert list(found) == ["encoder.layer.0.attention.attn", "encoder.layer.1.attention.attn"]
    assert {why for _, why in found.values()} == {"computes its weights by its own code"}
