"""The same over gloo, with generated kernels: what arrives is what was sent, and gradients of what all have are summed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from devices import SCANS
from processes import Pool, rows_of
from work import along, given_to, on_device, page, part, placed, trained, weights_of

import einfuse
from einfuse.ir.passes.shard import held
from einfuse.runtime.examples import Shape

CASES: list[tuple[str, str | None, tuple[str, ...], torch.dtype, tuple[int, ...]]] = [
    ("causal", "columns", ("i", "j"), torch.float32, (4, 5, 4)),
    ("causal", "heads", ("i", "j"), torch.float32, (4, 5, 4)),
    ("causal", "states", ("j",), torch.float32, (4, 5, 4)),
    ("causal", "columns", ("i", "j"), torch.bfloat16, (4, 5, 4)),
    ("causal", "heads", ("i", "j"), torch.bfloat16, (4, 5, 4)),
    ("causal", None, ("i", "j"), torch.bfloat16, (13, 0, 0)),
    ("causal", "ahead", ("i", "j"), torch.float32, (4, 5, 4)),
    ("causal", "rows_back", ("i", "j"), torch.bfloat16, (4, 5, 4)),
    ("alibi", "rows_back", ("i", "j"), torch.float32, (4, 9, 0)),
    ("causal", "rows", ("i", "j"), torch.float32, (4, 5, 4)),
    ("causal", "rows", ("i", "j"), torch.bfloat16, (4, 5, 4)),
    ("sliding_window", "columns", ("i", "j"), torch.float32, (2, 0, 11)),
    ("document", "columns", ("i", "j"), torch.float32, (4, 5, 4)),
    ("alibi", "columns", ("i", "j"), torch.float32, (6, 6, 1)),
    ("alibi", "states", ("j",), torch.bfloat16, (6, 6, 1)),
    ("sink", "states", ("j",), torch.float32, (1, 1, 11)),
    ("alibi", "heads", ("i", "j"), torch.float32, (1, 1, 0)),  # fewer tokens than devices
    ("entmax15", "columns", ("i", "j"), torch.float32, (4, 5, 4)),
    ("lssar", "columns", ("i", "j"), torch.float32, (4, 5, 4)),
    ("moba", "columns", ("i", "j"), torch.float32, (4, 5, 4)),
    ("talking_heads", "columns", ("i", "j"), torch.float32, (4, 5, 4)),
    ("gated_delta", "prefix", ("i",), torch.float32, (4, 5, 4)),
    ("mamba", "prefix", ("i",), torch.float32, (0, 7, 6)),
    ("retnet", "prefix", ("i",), torch.bfloat16, (4, 9, 0)),
]


@pytest.mark.parametrize(
    ("name", "exchange", "ranks", "dtype", "counts"), CASES, ids=[f"{n}-{e}-{str(d)[6:]}" for n, e, _, d, _ in CASES]
)
def test_three_processes_are_one(
    devices: Pool, name: str, exchange: str | None, ranks: tuple[str, ...], dtype: torch.dtype, counts: tuple[int, ...]
) -> None:
    n = sum(counts)
    check(devices, name, exchange, ranks, dtype, counts, Shape(1, 8, n, n, (8, 8), 4), 2e-5 if dtype == torch.float32 else 4e-2)


@pytest.mark.parametrize("name", [n for n in SCANS if n not in {"gated_delta", "mamba", "retnet", "performer", "retention"}])
def test_scans_hand_on_their_states(devices: Pool, name: str) -> None:
    """As written and in float64: of processes it is asked that states and their gradients arrive."""
    check(devices, name, "prefix", ("i",), torch.float64, (4, 0, 5), Shape(1, 2, 9, 9, (4, 2), 2), 1e-12, written=True)


def check(
    devices: Pool,
    name: str,
    exchange: str | None,
    ranks: tuple[str, ...],
    dtype: torch.dtype,
    counts: tuple[int, ...],
    shape: Shape,
    error: float,
    written: bool = False,
) -> None:
    """Outputs and gradients of all processes beside those of the cascade as written."""
    attention = einfuse.compile(name)
    c, place = attention.cascade, held(attention.cascade, ranks)
    asked = {"name": name, "exchange": exchange, "ranks": ranks, "dtype": dtype, "counts": counts, "shape": shape}
    made = devices.run(on_device, **asked, written=written)
    given = given_to(c, shape, dtype)
    floats = {n: x.double().requires_grad_() for n, x in given.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    leaves = {**given, **floats}
    whole = attention.reference(**leaves)
    whole = whole if isinstance(whole, tuple) else (whole,)
    truth = dict(zip(c.outs, whole, strict=True))
    w = weights_of(c, shape)
    sum((truth[n] * w[n].double()).sum() for n in c.outs).backward()  # type: ignore[union-attr]
    places = {n: along(c, ranks, n) for n in c.outs}
    for n, x in floats.items():
        truth[f"d{n}"] = torch.zeros_like(x) if x.grad is None else x.grad
        places[f"d{n}"] = place.get(n)
    for rank, found in enumerate(made):
        for n, x in found.items():
            expected = part(truth[n].detach(), places[n], rows_of(truth[n].shape[places[n] or 0], counts), rank)
            assert x.shape == expected.shape, n
            scale = 1 + truth[n].detach().abs().max()
            assert not x.numel() or float((x.double() - expected).abs().max() / scale) < error, (n, rank)
            if places[n] is None:
                assert torch.equal(x, made[0][n]), f"{n} has the same bits on all devices"


def test_the_page_runs(devices: Pool) -> None:
    text = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")
    found = devices.run(page, text="".join(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)))
    q, k, v = found[0]["whole"]
    expected = einfuse.compile("alibi").reference(q, k, v, slope=torch.full((4,), 0.1))
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    made = layer(q[0]).detach()
    for one in found:
        torch.testing.assert_close(one["made"], made[:, one["positions"]], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(one["o"].double(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(one["slope"], found[0]["slope"])
    assert torch.cat([one["positions"] for one in found]).sort().values.tolist() == list(range(50))


def test_the_example_trains_as_one_process_does(devices: Pool) -> None:
    path = Path(__file__).parents[2] / "examples" / "long_context.py"
    for over, alone, kept, kept_alone in devices.run(trained, path=str(path)):
        assert len(over) == 2
        assert max(abs(a - b) for a, b in zip(over, alone, strict=True)) < 1e-5
        assert kept < 0.6 * kept_alone


def test_dtensors_go_in_and_come_out(devices: Pool) -> None:
    attention, shape = einfuse.compile("alibi"), Shape(1, 4, 13, 13, (8, 8), 2)
    inputs = given_to(attention.cascade, shape, torch.float32)
    weight = torch.randn(1, 4, 13, 8)
    floats = {n: x.double().requires_grad_() for n, x in inputs.items()}
    truth = attention.reference(**floats)
    assert isinstance(truth, torch.Tensor)
    (truth * weight.double()).sum().backward()
    for one in devices.run(placed, inputs=inputs, weight=weight):
        torch.testing.assert_close(one["o"].double(), truth.detach(), atol=1e-5, rtol=1e-5)
        assert one["placements"] == "(Shard(dim=2),)"
        for n, g in one["grads"].items():
            torch.testing.assert_close(g.double(), floats[n].grad, atol=1e-4, rtol=1e-4)
        expected = "alibi: k has to be placed as S(2) on ('seq',), found R on ('seq',); redistribute it"
        assert one["message"] == expected
