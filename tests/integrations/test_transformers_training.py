"""What training asks of the attention of transformers' models: dropout, packed sequences, and a say about what is not supported."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from einfuse.integrations import transformers as integration
from einfuse.integrations.transformers import attention

transformers = pytest.importorskip("transformers", minversion="5")

pytestmark = pytest.mark.filterwarnings("ignore")  # the model library's own

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def _registered() -> None:
    integration.register("einfuse", backend="torch")


def llama(name: str = "einfuse", **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2, **more)
    return transformers.LlamaForCausalLM._from_config(config, attn_implementation=name)


def attend(**given: Any) -> torch.Tensor:
    q, k, v = (torch.randn(2, h, 6, 8, generator=torch.Generator().manual_seed(n)) for n, h in enumerate((4, 2, 2)))
    module = torch.nn.Module()
    return attention.attend(attention.Setting(backend="torch"), module, q, k, v, **{"attention_mask": None} | given)[0]


def test_dropped_weights_are_those_of_the_seed() -> None:
    torch.manual_seed(3)
    first, second = attend(dropout=0.3), attend(dropout=0.3)
    torch.manual_seed(3)
    assert torch.equal(attend(dropout=0.3), first)
    assert not torch.equal(first, second)


def test_dropout_changes_no_mean() -> None:
    """Each row keeps a weight with probability 1 - rate, and divides it by that."""
    found = torch.stack([attend(dropout=0.5) for _ in range(400)])
    right = attend()
    error = (found.mean(0) - right).abs() / (found.std(0) / 20 + 1e-6)
    assert error.max() < 5
    assert found.std(0)[:, 1:].min() > 0.01, "something is dropped"


@pytest.mark.slow
def test_a_model_with_dropout_trains() -> None:
    """The same seed gives the same gradients, with gradient checkpointing too; in evaluation nothing is dropped."""
    ours, ids = llama(attention_dropout=0.4), torch.randint(3, 40, (2, 9))
    stock = llama("eager", attention_dropout=0.4)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(input_ids=ids).logits, stock.eval()(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    found = []
    for again in (False, False, True):
        if again:
            ours.gradient_checkpointing_enable()
        torch.manual_seed(5)
        loss = ours.train()(input_ids=ids, labels=ids).loss
        found.append(torch.autograd.grad(loss, list(ours.parameters())))
    for a, b, c in zip(*found, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c)
        assert a.isfinite().all()


def test_packed_sequences_do_not_see_each_other() -> None:
    """By the bounds of flash attention's collator alone, without positions or a mask."""
    model, ids = llama().eval(), torch.randint(3, 40, (1, 9))
    bounds = torch.tensor([0, 4, 7, 9], dtype=torch.int32)
    given = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 4, "max_length_k": 4}
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1]])
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=places, attention_mask=torch.ones_like(ids), use_cache=False, **given).logits
        both = model(input_ids=ids, position_ids=places, use_cache=False, **given).logits
        apart = torch.cat([model(input_ids=ids[:, a:b]).logits for a, b in ((0, 4), (4, 7), (7, 9))], 1)
    torch.testing.assert_close(packed, apart)
    torch.testing.assert_close(both, apart)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"cu_seq_lens_q": torch.tensor([0, 6]), "cu_seq_lens_k": torch.tensor([0, 6])},
            "a batch of one row; found a batch of 2",
        ),
        ({"block_indices": torch.zeros(2, 1, 6, 1)}, "Module has its attention choose keys by `block_indices`"),
    ],
    ids=["bounds", "blocks"],
)
def test_what_would_be_ignored_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(**given)


def test_keys_that_an_indexer_chose() -> None:
    """DeepSeek V3.2 and others give their attention the keys of every query, where it is not called "eager" or "sdpa"."""
    chosen = torch.tensor([[[0, 0], [1, 0], [2, 0], [0, 3], [4, 1], [5, 4]]]).expand(2, -1, -1)
    seen = torch.zeros(2, 1, 6, 6, dtype=torch.bool).scatter(-1, chosen[:, None], True)
    torch.testing.assert_close(attend(indices=chosen, is_causal=False), attend(attention_mask=seen))


def eager_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    extra: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The eager attention of this file, as a file of a model has one."""
    assert extra is not None
    assert attention_mask is not None
    scores = query @ key.repeat_interleave(2, 1).mT * 8**-0.5 + attention_mask + extra
    weights = scores.softmax(-1)
    return (weights @ value.repeat_interleave(2, 1)).transpose(1, 2), weights


class Unusual(torch.nn.Module):
    """A module whose eager attention takes an argument of its own."""


def test_an_argument_of_a_models_own_attention_is_not_ignored() -> None:
    q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    given: dict[str, Any] = {"attention_mask": torch.ones(6, 6, dtype=torch.bool).tril(), "extra": torch.randn(6, 6)}
    with pytest.raises(ValueError, match="Unusual gives its attention extra, which einfuse does not know"):
        attention.attend(attention.Setting(), Unusual(), q, k, v, **given)
    with pytest.warns(UserWarning, match="extra, which einfuse does not know.*own eager attention computes it"):
        found, weights = attention.attend(attention.Setting(unsupported="fallback"), Unusual(), q, k, v, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        attention.attend(attention.Setting(unsupported="fallback"), Unusual(), q, k, v, **given)
    right = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.where(given["attention_mask"], given["extra"], -torch.inf), enable_gqa=True
    )
    torch.testing.assert_close(found.transpose(1, 2), right)
    assert weights is not None


def test_a_model_that_attends_by_itself_falls_back_where_asked() -> None:
    integration.register("einfuse or else", unsupported="fallback")
    config = transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4)
    with pytest.warns(UserWarning, match='Bloom.*its own code.*it is run with attn_implementation="eager"'):
        model = transformers.BloomForCausalLM._from_config(config, attn_implementation="einfuse or else")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="needs the stock mechanism"):
        integration.register("odd", "causal", unsupported="fallback")
