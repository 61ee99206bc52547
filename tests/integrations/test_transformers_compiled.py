"""Models of transformers on einfuse under torch.compile: one graph, and what the model gives without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from einfuse.integrations import transformers as integration

transformers = pytest.importorskip("transformers", minversion="5")

pytestmark = pytest.mark.filterwarnings("ignore")  # the model library's own

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "pad_token_id": 0,
}


def model(name: str, kind: str = "ForCausalLM", **more: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **more)
    return getattr(transformers, name + kind)._from_config(config, attn_implementation="einfuse").eval()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    integration.register("einfuse", backend="torch")
    torch._dynamo.reset()


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "causal": ("Llama", {"num_key_value_heads": 2}),
    "window and softcap": (
        "Gemma2",
        {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0},
    ),
    "both ways": ("Bert", {"kind": "ForMaskedLM"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_for_any_length_and_padding(kind: str) -> None:
    """fullgraph=True refuses a break; the second length makes sizes symbols, and the third asks for no more graphs."""
    name, more = KINDS[kind]
    ours = model(name, **more)
    graphs: list[Any] = []

    def kept(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(ours, fullgraph=True, backend=kept)
    for length in (9, 12, 14):
        ids = torch.randint(3, 40, (2, length))
        real = torch.arange(length)[None] >= torch.tensor([0, 5])[:, None]
        with torch.no_grad():
            expected, found = (m(input_ids=ids, attention_mask=real.long()).logits for m in (ours, compiled))
        torch.testing.assert_close(found[real], expected[real])
    assert len(graphs) == 2
    calls = [n for n in graphs[-1].graph.nodes if "einfuse" in str(n.target)]
    assert len(calls) == 1, "an attention a layer"
    taken = [x.meta["example_value"] for x in calls[0].args[-1]]
    assert [x.ndim for x in taken if x.dtype == torch.bool] == [2], "the padding alone: no mask of pairs"


@pytest.mark.slow
def test_gradients_of_a_compiled_model() -> None:
    ours = model("Mistral", num_key_value_heads=2, sliding_window=4)
    ids, real = torch.randint(3, 40, (2, 9)), torch.arange(9)[None] >= torch.tensor([0, 5])[:, None]
    found = []
    for m in (ours, torch.compile(ours, fullgraph=True, backend="aot_eager")):
        logits = m(input_ids=ids, attention_mask=real.long()).logits
        found.append(torch.autograd.grad(logits[real].square().sum(), list(ours.parameters())))
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)
