"""What other code does with a model on einfuse: copies it, saves it, averages its weights, runs it in threads, gives it other caches."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from narrowed import through
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from einfuse.integrations import transformers as integration

transformers = pytest.importorskip("transformers", minversion="5")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # the model library's own

SIZES = {
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


def model(name: str = "einfuse", **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        **SIZES,
        head_dim=8,
        num_key_value_heads=2,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        tie_word_embeddings=False,
        **more,
    )
    made = transformers.Gemma3ForCausalLM._from_config(config, attn_implementation=name).eval()
    for p in made.parameters():
        if p.ndim == 2:
            p.data.mul_(8)  # so that tokens differ
    return made


IDS = torch.tensor([[3, 9, 22, 5, 31, 7, 12], [0, 0, 0, 17, 4, 28, 6]])


def logits(of: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = of(input_ids=IDS, attention_mask=(IDS != 0).long()).logits[IDS != 0]
        return found


def saved(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def averaged(x: Any) -> Any:
    return AveragedModel(x, multi_avg_fn=get_ema_multi_avg_fn(0.5)).module


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "save": saved,
    "average": averaged,
}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_computes_with_its_own_weights(how: str) -> None:
    ours = model()
    before = logits(ours)
    made = COPIES[how](ours)
    assert made.config._attn_implementation == "einfuse"
    assert torch.equal(logits(made), before)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(0.5)
    assert torch.equal(logits(ours), before)
    assert not torch.equal(logits(made), before)
    made.set_attn_implementation("eager")
    assert ours.config._attn_implementation == "einfuse"


def test_threads_do_not_disturb_each_other() -> None:
    """Two models on einfuse and one on sdpa, each in several threads at once, give what they give alone."""
    models = [model(), model(attn_logit_softcapping=2.0), model("sdpa")]
    alone = [logits(m) for m in models]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(logits, models * 6))
    for n, x in enumerate(found):
        assert torch.equal(x, alone[n % 3])


CALLS: dict[str, dict[str, Any]] = {
    "growing": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
    "none": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams, static": {"num_beams": 2, "cache_implementation": "static", "disable_compile": True},
    "chunks of the prompt": {"prefill_chunk_size": 3},
    "lookup": {"prompt_lookup_num_tokens": 2},
}


@pytest.mark.parametrize("how", CALLS)
def test_generation_gives_the_tokens_of_eager(how: str) -> None:
    """A window of 4 and full attention in turn, padding on the left; 9 tokens, so that the window slides and the cache grows."""
    ours, found = model(), []
    ids = IDS[:1] if how in ("lookup", "chunks of the prompt") else IDS
    for name in ("eager", "einfuse"):
        ours.set_attn_implementation(name)
        given = {"attention_mask": (ids != 0).long(), "max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
        found.append(ours.generate(input_ids=ids, **given, **CALLS[how]).tolist())
    assert found[0] == found[1]
    assert len(set(found[0][0][7:])) > 2, "tokens differ"


def test_a_cache_is_gone_on_with() -> None:
    """A second prompt behind a cache: more queries than one, fewer than keys."""
    ours, found = model(), []
    more = torch.tensor([[8, 15, 3], [11, 2, 19]])
    for name in ("eager", "einfuse"):
        ours.set_attn_implementation(name)
        with torch.no_grad():
            first = ours(input_ids=IDS, attention_mask=(IDS != 0).long(), use_cache=True)
            real = torch.cat([IDS != 0, more != 0], 1).long()
            found.append(ours(input_ids=more, attention_mask=real, past_key_values=first.past_key_values).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


class Logits(torch.nn.Module):
    """A model from tensors to a tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(input_ids=ids, attention_mask=real, use_cache=False).logits
        return found


def exported(model: Any) -> torch.Tensor:
    given = (IDS, (IDS != 0).long())
    return through(torch.export.export(Logits(model), given).module(), *given)


def traced(model: Any) -> torch.Tensor:
    given = (IDS, (IDS != 0).long())
    return through(torch.jit.trace(Logits(model), given, check_trace=False), *given)


def quantised(model: Any) -> torch.Tensor:
    few = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})  # a copy with other linear layers
    return through(Logits(few), IDS, (IDS != 0).long())


def for_each_row(model: Any) -> torch.Tensor:
    """Gradients of every row, by torch.func."""
    weights = {n: p.detach() for n, p in model.named_parameters()}

    def loss(weights: Any, ids: torch.Tensor) -> torch.Tensor:
        called = torch.func.functional_call(model, weights, (ids[None],), {"use_cache": False})
        found: torch.Tensor = called.logits.square().mean()
        return found

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, IDS)
    return torch.cat([x.flatten() for x in found.values()])


WAYS: dict[str, Callable[[Any], torch.Tensor]] = {
    "export": exported,
    "trace": traced,
    "quantise": quantised,
    "gradients of rows": for_each_row,
}


@pytest.mark.parametrize("way", WAYS)
def test_other_ways_to_run_a_model(way: str) -> None:
    ours, found = model(), []
    for name in ("eager", "einfuse"):
        ours.set_attn_implementation(name)
        found.append(WAYS[way](ours).detach())
    if found[0].shape[:2] == IDS.shape:
        found = [x[IDS != 0] for x in found]
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4 * found[0].abs().max().item())
