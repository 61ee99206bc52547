"""Modules that hold attentions are copied, pickled, averaged, quantised and sent to other processes, before and after calls."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import einfuse
from einfuse.library.layers import RotaryAttention

pytestmark = pytest.mark.slow

N, D = 6, 4
KINDS: dict[str, Callable[[], einfuse.Attention]] = {
    "one pass": lambda: einfuse.compile("causal"),
    "a scan": lambda: einfuse.compile("gla"),
    "two kernels": lambda: einfuse.compile("linformer"),
    "lists of pairs": lambda: einfuse.compile("neighbourhood_2d", columns=3, window=3),
    "optional inputs": lambda: einfuse.compile("cross"),
    "the linear form": lambda: einfuse.compile("taylor2", form="linear"),
    "traced functions": lambda: einfuse.attention(lambda score, b, h, i, j, *, slope=0.5: score - slope * (i - j)),
}


def arguments(attn: einfuse.Attention, grad: bool) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    shapes = {"f": (2, 3, N), "g": (1, 2, N, D) if attn.name == "gla" else (2, 3, N)}
    names = [t.name for t in attn.cascade.inputs if not t.param]
    return {n: torch.randn(shapes.get(n, (1, 2, N, D)), generator=g).requires_grad_(grad) for n in names}


def results(attn: einfuse.Attention, grad: bool) -> list[torch.Tensor]:
    held = arguments(attn, grad)
    out = attn(**held)
    outs = list(out) if isinstance(out, tuple) else [out]
    return outs + list(torch.autograd.grad([o.sin().sum() for o in outs], list(held.values()))) if grad else outs


def reloaded(x: Any) -> Any:
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "torch.save": reloaded,
}


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_an_attention(kind: str) -> None:
    attn = KINDS[kind]()
    for grad in (None, False, True):  # before any call, after one, after one with gradients
        if grad is not None:
            results(attn, grad)
        for name, make in COPIES.items():
            made = make(attn)
            assert (made.text, made.form, made.backend, made.optional) == (attn.text, attn.form, attn.backend, attn.optional)
            assert made.program is attn.program, f"{name} builds its kernels again"
            for a, b in zip(results(made, bool(grad)), results(attn, bool(grad)), strict=True):
                assert torch.equal(a, b)


def test_what_belongs_to_an_attention_goes_with_it() -> None:
    attn = einfuse.compile("taylor2", form="linear")
    step, forms = pickle.loads(pickle.dumps((attn.step, attn.forms)))
    assert step.__self__.form == "linear"
    assert forms.found is not None


@einfuse.score_mod
def tilted(score: Any, b: Any, h: Any, i: Any, j: Any) -> Any:
    return score + i - j


@einfuse.mask_mod
def near(b: Any, h: Any, i: Any, j: Any) -> Any:
    return abs(i - j) < 2


@pytest.mark.parametrize("mod", [tilted, near, near & ~near, einfuse.masks.causal], ids=lambda m: m.name)
def test_mods_are_pickled_as_functions_are(mod: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[tilted.fn.__module__])
    made = pickle.loads(pickle.dumps(mod))
    assert type(made) is type(mod)
    assert made.name == mod.name
    assert (made is mod) == (mod.fn is not None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_averaged_and_quantised_layers() -> None:
    layer, x = RotaryAttention(16, 4), torch.randn(1, N, 16)
    layer(x).sum().backward()
    averaged = torch.optim.swa_utils.AveragedModel(layer)
    averaged.update_parameters(layer)
    torch.testing.assert_close(averaged(x), layer(x))
    quantised = torch.ao.quantization.quantize_dynamic(layer, {torch.nn.Linear})
    assert quantised(x).shape == x.shape


ELSEWHERE = """
import pickle, torch
for path in {paths!r}:
    attn, held, rest, expected = torch.load(path, weights_only=False)
    torch.testing.assert_close(attn(**held, **rest), expected)
"""


def test_attentions_run_where_they_are_loaded(tmp_path: Path) -> None:
    """In a process that imports nothing of ours itself; there an optional input may be given for the first time."""
    paths = []
    for name, rest in {"optional": {"pad": torch.tensor([[True] * (N - 1) + [False]])}, "plain": {}}.items():
        attn = einfuse.compile("cross")
        held = arguments(attn, False)
        pickled = pickle.loads(pickle.dumps(attn))
        paths.append(str(tmp_path / f"{name}.pt"))
        torch.save((pickled, held, rest, attn(**held, **rest)), paths[-1])
    subprocess.run([sys.executable, "-c", ELSEWHERE.format(paths=paths)], check=True)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_attentions_go_to_processes(method: str) -> None:
    attn = einfuse.compile("causal")
    results(attn, True)  # what it has built, and the threads of a call, are there before the other process is
    held = tuple(arguments(attn, False).values())
    with torch.multiprocessing.get_context(method).Pool(1) as pool:
        torch.testing.assert_close(pool.apply_async(attn, held).get(timeout=60), attn(*held))
