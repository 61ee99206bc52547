"""The operators as torch sees them: schemas, fake kernels, autograd, capture, autocast, strides and odd sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import einfuse
from einfuse.ir import EinfuseError
from einfuse.runtime import ops

pytestmark = pytest.mark.slow

B, H, G, N, M, D, E = 2, 4, 2, 13, 17, 8, 12


@pytest.fixture(scope="module")
def attn() -> einfuse.Attention:
    return einfuse.compile("alibi_window", window=5)


def tensors(grad: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(B, H, N, D), (B, G, M, D), (B, G, M, E), (H,)]
    return [torch.randn(s, generator=g).to(dtype).requires_grad_(grad) for s in shapes]


def call(attn: einfuse.Attention, *ints: int) -> ops.Call:
    return ops.Call(attn.text, "", False, False, list(ints), None)


def test_opcheck_of_every_operator(attn: einfuse.Attention) -> None:
    held, needs = tensors(), [True] * 4
    torch.library.opcheck(ops.attention, (*call(attn, 5), held))
    torch.library.opcheck(ops.forward, (*call(attn, 5), held, needs), test_utils=("test_schema", "test_faketensor"))
    plain = [x.detach() for x in held]
    outs = ops.forward(*call(attn, 5), plain, needs)
    given = [torch.ones_like(outs[0])]
    torch.library.opcheck(
        ops.backward, (*call(attn, 5), plain, needs, outs, given), test_utils=("test_schema", "test_faketensor")
    )
    for order, directions in (("r1111", given), ("f1001", [held[0].detach(), held[3].detach()])):
        torch.library.opcheck(ops.derivative, (*call(attn, 5), held, directions, order))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_fullgraph_equals_eager(attn: einfuse.Attention, dynamic: bool) -> None:
    def loss(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        out = attn(q, k, v, slope=slope, window=3)
        assert isinstance(out, torch.Tensor)
        return (out * out).sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for seed in range(2):
        held = tensors(seed=seed)
        expected = torch.autograd.grad(loss(*held), held)
        found = torch.autograd.grad(compiled(*held), held)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


class Model(torch.nn.Module):
    def __init__(self, attn: einfuse.Attention) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        out = self.attn(q, k, v, slope=slope)
        assert isinstance(out, torch.Tensor)
        return out


ELSEWHERE = """
import sys
sys.modules |= dict.fromkeys(["einfuse.dsl", "einfuse.codegen.cpu.source", "einfuse.codegen.torch"])  # an import of these fails
import einfuse, torch
from einfuse.codegen.cpu import build
build._run = None
load = {{"export": lambda p: torch.export.load(p).module(), "package": torch._inductor.aoti_load_package}}
for kind, (path, held, expected) in torch.load({path!r}).items():
    torch.testing.assert_close(tuple(load[kind](path)(*held)), expected)
"""


class Three(torch.nn.Module):
    """A masked softmax, one with a table, and a scan; ``numbers``: with host numbers, without which AOTInductor passes no list."""

    def __init__(self, numbers: bool) -> None:
        super().__init__()
        self.masked = einfuse.compile("sliding_window" if numbers else "causal")
        self.table, self.scan = einfuse.compile("alibi_window" if numbers else "alibi"), einfuse.compile("retention")

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slope: torch.Tensor) -> tuple[object, ...]:
        return self.masked(q, k, v), self.table(q, k, v, slope=slope), self.scan(q, k, v, slope=slope)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # by torch._inductor itself
def test_saved_programs_run_in_a_process_that_can_compile_nothing(tmp_path: Path) -> None:
    """It has einfuse, its kernels on disk, and neither the language nor what prints and compiles kernels."""
    found = {kind: saved(tmp_path / f"{kind}.pt2", kind, kind == "package") for kind in ("export", "package")}
    torch.save(found, tmp_path / "found.pt")
    subprocess.run([sys.executable, "-c", ELSEWHERE.format(path=str(tmp_path / "found.pt"))], check=True)


def saved(file: Path, kind: str, dynamic: bool) -> tuple[str, list[torch.Tensor], tuple[object, ...]]:
    """Where a program was saved, arguments, and what it gives for them."""
    model, g = Three(dynamic), torch.Generator().manual_seed(0)
    held = [*(torch.randn(1, 2, 13, 8, generator=g) for _ in range(3)), torch.rand(2, generator=g)]
    points = torch.export.Dim("N", min=2, max=64)
    axes = ({2: points}, {2: points}, {2: points}, None) if dynamic else None
    program = torch.export.export(model, tuple(held), dynamic_shapes=axes)
    path = str(file)
    if kind == "export":
        torch.export.save(program, path)
    else:
        quick = {"aot_inductor.compile_wrapper_opt_level": "O0"}  # what wraps the operators has no loop
        torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=quick)
    if dynamic:
        held[:3] = (torch.cat([x, x], 2) for x in held[:3])
    return path, held, model(*held)


def test_a_program_exported_for_inference_can_be_trained(attn: einfuse.Attention) -> None:
    program = torch.export.export(Model(attn), tuple(tensors(grad=False)))
    held = tensors()
    found = torch.autograd.grad(program.module()(*held).square().sum(), held)
    for a, b in zip(found, torch.autograd.grad(Model(attn)(*held).square().sum(), held), strict=True):
        torch.testing.assert_close(a, b)


def test_a_text_that_is_no_cascade_is_named(attn: einfuse.Attention) -> None:
    with pytest.raises(EinfuseError, match="cannot read; capture it again: cascade of another version"):
        ops.attention("cascade of another version", "", False, False, None, None, tensors(grad=False))


def test_meta_tensors_give_shapes(attn: einfuse.Attention) -> None:
    out = attn(*(x.to("meta") for x in tensors(grad=False)))
    assert isinstance(out, torch.Tensor)
    assert out.shape == (B, H, N, E)
    assert out.device.type == "meta"


def test_autocast_narrows(attn: einfuse.Attention) -> None:
    held = tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attn(*held)
    assert isinstance(out, torch.Tensor)
    assert out.dtype == torch.bfloat16
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(out.float().sum(), held))


def test_any_strides(attn: einfuse.Attention) -> None:
    held = tensors(grad=False)
    odd = [x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.ndim > 1 else x for x in held]
    spread = [torch.stack([x, x], -1)[..., 0] for x in held]
    torch.testing.assert_close(attn(*odd), attn(*held))
    torch.testing.assert_close(attn(*spread), attn(*held))


EMPTY = {
    "batch": (0, 4, 2, 3, 3, 8, 12),
    "heads": (2, 0, 0, 3, 3, 8, 12),
    "queries": (1, 4, 2, 0, 5, 8, 12),
    "keys": (2, 4, 2, 3, 0, 8, 12),
    "values": (2, 4, 2, 3, 3, 8, 0),
    "everything": (0, 0, 0, 0, 0, 0, 0),
    "nothing, of one point": (1, 1, 1, 1, 1, 1, 1),
}


@pytest.mark.parametrize("sizes", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("name", ["alibi_window", "full", "retention", "taylor2", "linear form of taylor2"])
def test_empty_and_tiny(name: str, sizes: tuple[int, ...]) -> None:
    b, h, g, n, m, d, e = sizes
    attn = einfuse.compile(name.split()[-1], form="linear" if name.startswith("linear") else "auto")
    if name == "retention":
        g, m = h, n
    if name.endswith("taylor2"):
        m = n  # a scan goes along both
    held = [torch.randn(b, h, n, d), torch.randn(b, g, m, d), torch.randn(b, g, m, e)]
    held += [torch.ones(h)] if any(t.name == "slope" for t in attn.cascade.inputs) else []
    held = [x.requires_grad_() for x in held]
    outs, truth = (list(o) if isinstance(o, tuple) else [o] for o in (attn(*held), attn.reference(*held, dtype=torch.float32)))
    torch.testing.assert_close(outs, truth)
    with torch.no_grad():
        torch.testing.assert_close(attn(*held), outs if len(outs) > 1 else outs[0])
    for gradient, x in zip(torch.autograd.grad([o.sum() for o in outs], held), held, strict=True):
        assert gradient.shape == x.shape
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("bounds", [[0], [0, 0], [0, 0, 0], [0, 0, 3, 3]])
def test_empty_sequences(bounds: list[int]) -> None:
    attn, tokens = einfuse.compile("causal"), bounds[-1]
    held = [torch.randn(tokens, 2, 4, requires_grad=True) for _ in range(3)]
    out = einfuse.varlen(attn, *held, cu_seqlens_q=torch.tensor(bounds, dtype=torch.int32))
    assert isinstance(out, torch.Tensor)
    assert [x.shape for x in (out, *torch.autograd.grad(out.sum(), held))] == [(tokens, 2, 4)] * 4


def test_fake_tensors_and_tensors_in_tensors(attn: einfuse.Attention) -> None:
    """Of the first no values are asked, of the second the operator is called with what they hold."""
    with FakeTensorMode():
        held = tensors()
        out = attn(*held)
        assert isinstance(out, torch.Tensor)
        assert [x.shape for x in torch.autograd.grad(out.sum(), held)] == [x.shape for x in held]
    plain = tensors(grad=False)
    two = [TwoTensor(x, 2 * x) for x in plain]
    found = attn(*two)
    assert isinstance(found, TwoTensor)
    assert torch.equal(found.b, attn(*(2 * x for x in plain)))  # type: ignore[arg-type]  # one output


@pytest.mark.parametrize("name", ["full", "retention", "linformer"])
def test_checkpoints_and_offloading(name: str) -> None:
    """Both hand out what was saved once for every time it is asked for, and checkpointing but once."""
    attn = einfuse.compile(name)
    x = torch.randn(1, 2, 5, 8, requires_grad=True)
    more = {"retention": [torch.ones(2)], "linformer": [torch.randn(2, 3, 5)] * 2}.get(name, [])

    def run(x: torch.Tensor) -> torch.Tensor:
        out = attn(x, x, x, *more)
        return out[0] if isinstance(out, tuple) else out

    (expected,) = torch.autograd.grad(run(x).sum(), x)
    assert torch.equal(torch.autograd.grad(checkpoint(run, x, use_reentrant=False).sum(), x)[0], expected)
    with torch.autograd.graph.save_on_cpu():
        out = run(x)
    assert torch.equal(torch.autograd.grad(out.sum(), x)[0], expected)


@pytest.mark.parametrize("strict", [False, True])
def test_forms_and_variants_are_made_while_a_graph_is_captured(strict: bool) -> None:
    """The linear form for a width, and the variant with an optional input, were never called before."""
    x, pad = torch.randn(1, 2, 5, 6), torch.ones(1, 5, dtype=torch.bool)
    linear, cross = einfuse.compile("taylor2", form="linear"), einfuse.compile("cross")

    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor, pad: torch.Tensor) -> object:
            return linear(x, x, x), cross(x, x, x, pad=pad)

    program = torch.export.export(Both(), (x, pad), strict=strict)
    torch.testing.assert_close(program.module()(x, pad), Both()(x, pad))


def test_only_wanted_gradients(attn: einfuse.Attention) -> None:
    q, k, v, slope = tensors(grad=False)
    slope.requires_grad_()
    out = attn(q, k, v, slope=slope)
    assert isinstance(out, torch.Tensor)
    (g,) = torch.autograd.grad(out.sum(), [slope])
    truth = attn.reference(q, k, v, slope=slope)
    assert isinstance(truth, torch.Tensor)
    torch.testing.assert_close(g, torch.autograd.grad(truth.sum(), [slope])[0])


def test_deterministic_to_the_bit(attn: einfuse.Attention) -> None:
    held = tensors(dtype=torch.bfloat16)
    first = torch.autograd.grad(attn(*held).float().sum(), held)  # type: ignore[union-attr]
    for _ in range(3):
        again = torch.autograd.grad(attn(*held).float().sum(), held)  # type: ignore[union-attr]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_gradcheck_in_float64() -> None:
    attn = einfuse.compile("causal")
    held = [torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, k, v: attn(q, k, v), held, eps=1e-6, atol=1e-6)


def test_a_new_number_compiles_nothing(attn: einfuse.Attention) -> None:
    held = tensors(grad=False)
    attn(*held, window=2)
    built = len(attn.program.built)
    attn(*held, window=9)
    assert len(attn.program.built) == built
