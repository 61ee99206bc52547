"""Masks that are not written out: formulas to our attention, the booleans of transformers to whoever else reads them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from einfuse.integrations import transformers as integration
from einfuse.integrations.transformers import attention, functions, masks
from einfuse.integrations.transformers.masks import MARK, Unwritten, mask

transformers = pytest.importorskip("transformers", minversion="5")
from transformers import masking_utils  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the model library's own

SETTING = attention.Setting(backend="torch")


@pytest.fixture(autouse=True)
def _registered() -> None:
    integration.register("einfuse", backend="torch")


def padding(*real: int, length: int) -> torch.Tensor:
    return torch.arange(length)[None] >= length - torch.tensor(real)[:, None]


FUNCTIONS: dict[str, tuple[Callable[[], Any], int | None]] = {
    "causal": (lambda: masking_utils.causal_mask_function, None),
    "bidirectional": (lambda: masking_utils.bidirectional_mask_function, None),
    "window": (lambda: masking_utils.sliding_window_causal_mask_function(3), 3),
    "window both ways": (lambda: masking_utils.sliding_window_bidirectional_mask_function(2), 2),
    "chunks": (lambda: masking_utils.chunked_causal_mask_function(4, torch.tensor([0, 3])), 4),
}
CALLS: dict[str, dict[str, Any]] = {
    "square": {"q_length": 7, "kv_length": 7},
    "a cache that grew": {"q_length": 3, "kv_length": 9, "q_offset": 6},
    "a cache with room": {"q_length": 3, "kv_length": 12, "q_offset": torch.tensor(4)},
    "a cache that slides": {"q_length": 4, "kv_length": 6, "q_offset": 7, "kv_offset": 5},
    "a query": {"q_length": 1, "kv_length": 9, "q_offset": 8},
}


@pytest.mark.parametrize("padded", [False, True], ids=["real", "padded"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_formulas_see_what_the_booleans_of_transformers_see(function: str, call: str, padded: bool) -> None:
    """Stock functions make the booleans; a clone of a mask is booleans; our attention gives the same for the mask and for its clone."""
    make, size = FUNCTIONS[function]
    sizes = CALLS[call]
    length = int(sizes.get("kv_offset", 0)) + sizes["kv_length"]
    given: dict[str, Any] = {"attention_mask": padding(length, length - 3, length=length)} if padded else {}
    made = mask(2, **sizes, **given, mask_function=make(), local_size=size)
    stock = make()
    name = {"window": "sliding_window_causal", "window both ways": "sliding_window_bidirectional", "chunks": "chunked_causal"}
    if function in name:
        closure = functions.stock(f"{name[function]}_mask_function")
        stock = closure(*((size, torch.tensor([0, 3])) if function == "chunks" else (size,)))
    seen = masking_utils.sdpa_mask(2, **sizes, **given, mask_function=stock, allow_is_causal_skip=False)
    q, k, v = (torch.randn(2, 4, n, 8) for n in (sizes["q_length"], sizes["kv_length"], sizes["kv_length"]))
    formula, _ = attention.attend(SETTING, torch.nn.Module(), q, k, v, made)
    if sizes["q_length"] > 1 and function != "bidirectional":
        assert isinstance(made, Unwritten)
        assert made._written is None, "our attention reads the pattern"
    booleans = made.clone()
    assert seen is not None
    assert torch.equal(booleans, seen)
    assert not hasattr(booleans, MARK)
    written, _ = attention.attend(SETTING, torch.nn.Module(), q, k, v, booleans)
    torch.testing.assert_close(formula, written)


def saved(x: torch.Tensor) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file)


def without_functions(x: torch.Tensor) -> torch.Tensor:
    with torch._C.DisableTorchFunctionSubclass():  # as C++ calls it
        return torch.logical_not(x)


ROWS = torch.ones(2, 1, 5, 4)
READERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "index": lambda m: m[:, :, -1:, 1:],
    "iterate": lambda m: [row for batch in m for row in batch],
    "add": lambda m: m + 0.5,
    "invert": lambda m: ~m,
    "where": lambda m: torch.where(m, 0.0, -torch.inf),
    "concatenate": lambda m: torch.cat([m, m], -1),
    "sdpa": lambda m: torch.nn.functional.scaled_dot_product_attention(ROWS, ROWS, ROWS, attn_mask=m),
    "to": lambda m: m.to(torch.float16),
    "numpy": lambda m: torch.from_numpy(m.numpy()),
    "list": lambda m: m.tolist(),
    "all": lambda m: bool(m.all()),
    "expand": lambda m: m.expand(2, 3, 5, 5),
    "vmap": lambda m: torch.vmap(lambda x: x.sum())(m),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "save": saved,
    "repr": repr,
    "equal": lambda m: torch.equal(m, m),
    "memory": lambda m: m.untyped_storage().nbytes() >= 25 and m.data_ptr() != 0,
    "an operator alone": without_functions,
    "a model of its own": lambda m: (ROWS @ ROWS.mT).masked_fill(~m, -torch.inf).softmax(-1),
}


@pytest.mark.parametrize("reader", READERS)
def test_any_reader_gets_the_booleans(reader: str) -> None:
    made = mask(2, 5, 5, attention_mask=padding(5, 4, length=5))
    booleans = masking_utils.sdpa_mask(2, 5, 5, attention_mask=padding(5, 4, length=5), allow_is_causal_skip=False)
    assert isinstance(made, Unwritten)
    assert booleans is not None
    assert (made.shape, made.dtype, made.device) == (booleans.shape, booleans.dtype, booleans.device)
    found, right = READERS[reader](made), READERS[reader](booleans)
    if isinstance(right, torch.Tensor):
        assert type(found) is torch.Tensor
        torch.testing.assert_close(found, right, equal_nan=True)
    elif isinstance(right, list) and isinstance(right[0], torch.Tensor):
        assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))
    else:
        assert found == right


@pytest.mark.parametrize("window", [None, 3])
def test_packed_sequences_are_a_pattern(window: int | None) -> None:
    """Positions that start again: what transformers composes of its functions, from a model's call to the mask."""
    config = transformers.MistralConfig(sliding_window=window, attn_implementation="einfuse")
    create = masking_utils.create_sliding_window_causal_mask if window else masking_utils.create_causal_mask
    positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0], [3, 4, 5, 0, 1, 2, 3, 4, 5]])
    given = {"inputs_embeds": torch.zeros(2, 9, 4), "attention_mask": None, "cache": None, "position_ids": positions}
    made = create(config, **given)
    assert isinstance(made, Unwritten)
    q, k, v = (torch.randn(2, 4, 9, 8) for _ in range(3))
    found, _ = attention.attend(SETTING, torch.nn.Module(), q, k, v, made)
    config._attn_implementation = "sdpa"
    seen = create(config, **given)
    assert torch.equal(made.clone(), seen)
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(found.transpose(1, 2), right)
    distance = torch.arange(9)[:, None] - torch.arange(9)
    apart = (torch.diff(positions, prepend=positions[:, :1] - 1) != 1).cumsum(-1)
    expected = (apart[:, :, None] == apart[:, None]) & (distance >= 0) & (distance < (window or 9))
    assert torch.equal(seen[:, 0], expected)


def test_a_mask_is_that_of_the_moment_it_was_made() -> None:
    """Caches count on in place, and callers may write into their padding."""
    offset, real = torch.tensor(2), padding(5, 4, length=5)
    made = mask(2, 3, 6, offset, attention_mask=real)
    right = masking_utils.sdpa_mask(2, 3, 6, 2, attention_mask=real.clone(), allow_is_causal_skip=False)
    offset += 3
    real.fill_(True)
    assert right is not None
    assert torch.equal(made.clone(), right)


def test_what_is_written_into_a_mask_is_seen() -> None:
    made = mask(1, 5, 5)
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    part = made[:, :, :, 1:3]
    part.fill_(False)
    made.logical_and_(torch.arange(5) != 4)
    seen = torch.ones(5, 5, dtype=torch.bool).tril() & torch.tensor([True, False, False, True, False])
    found, _ = attention.attend(SETTING, torch.nn.Module(), q, k, v, made)
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(found.transpose(1, 2), right)


def test_a_mask_takes_no_memory_that_grows_with_the_pairs() -> None:
    long = 1 << 20  # a tebibyte of booleans
    made = mask(1, long, long, attention_mask=torch.ones(1, long, dtype=torch.bool))
    assert made.shape == (1, 1, long, long)
    assert getattr(made, MARK).tensors == {}, "no padding where all is real"


@pytest.mark.slow
def test_layers_that_are_compiled_alone_take_the_mask() -> None:
    """A mask that enters a graph from outside is the same pattern there."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
    config = transformers.MistralConfig(**sizes, num_key_value_heads=2, sliding_window=4, pad_token_id=0)
    model = transformers.MistralForCausalLM._from_config(config, attn_implementation="einfuse").eval()
    ids, real = torch.randint(3, 40, (2, 9)), padding(9, 5, length=9)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=real.long()).logits
        torch._dynamo.reset()
        for layer in model.model.layers:
            layer.compile(backend="eager", fullgraph=True)
        found = model(input_ids=ids, attention_mask=real.long()).logits
    torch.testing.assert_close(found[real], expected[real])


def test_models_that_add_their_masks_to_scores_read_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that transformers does not run with sdpa were never given booleans: DeepSeek V4 appends columns of zeros, which are visible."""

    class Config:
        """A configuration of such a model."""

    monkeypatch.setattr(masks, "ADDED", {Config})
    given: dict[str, Any] = {"config": Config(), "dtype": torch.float64, "attention_mask": padding(5, 4, length=5)}
    q, k, v = (torch.randn(2, 2, n, 8, dtype=torch.float64) for n in (5, 7, 7))
    for name in ("causal", "bidirectional", "window both ways"):
        function = FUNCTIONS[name][0]()
        made, read = (mask(2, 5, 5, mask_function=function, **given) for _ in range(2))
        right = masking_utils.eager_mask(
            2, 5, 5, mask_function=function, dtype=torch.float64, attention_mask=given["attention_mask"]
        )
        assert made.dtype == torch.float64
        assert torch.equal(read + 0, right)
        found, _ = attention.attend(SETTING, torch.nn.Module(), q, k[:, :, :5], v[:, :, :5], made)
        longer, _ = attention.attend(SETTING, torch.nn.Module(), q, k, v, torch.nn.functional.pad(made, (0, 2)))
        for out, n in ((found, 5), (longer, 7)):
            bias = torch.nn.functional.pad(right, (0, n - 5))
            expected = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :n], v[:, :, :n], attn_mask=bias)
            torch.testing.assert_close(
                out.transpose(1, 2)[:, :, 1:], expected[:, :, 1:]
            )  # row 0 of the second sequence sees no key


def test_a_watched_mask_is_written_out() -> None:
    """Under a transform, a mode or a tracer a mask is plain booleans, with its pattern beside it."""
    with FakeTensorMode():
        made = mask(1, 5, 5)
    assert not isinstance(made, Unwritten)
    assert hasattr(made, MARK)
    assert not masks._watched()
