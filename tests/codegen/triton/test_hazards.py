"""Hazards of real GPUs that no interpreter shows, by their numbers in the list the project keeps: ruled out by what is launched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import einfuse
from einfuse.codegen.plan import Dot, KernelPlan, Load, Store, operations
from einfuse.codegen.scan import ScanPlan
from einfuse.codegen.targets import TARGETS, Target, of_amd, of_nvidia
from einfuse.codegen.triton import build
from einfuse.codegen.triton.layout import MATRIX, Layout
from einfuse.runtime import backends, devices, prepared
from einfuse.runtime.backends import TritonBackend
from einfuse.runtime.binding import DTYPE, arguments
from einfuse.runtime.given import Given
from einfuse.runtime.inside import Candidate, launched
from einfuse.runtime.static import job
from einfuse.runtime.verify import Shape, example_inputs

VARIED = ("causal", "gqa", "document", "linear", "gated_delta", "swin", "entmax15", "t5_bias", "paged", "talking_heads")
OTHERS: tuple[Target, ...] = ("sm_86", "sm_100", "sm_120", "gfx950")
"""Targets that no other test compiles for; sm_89 has the limits of sm_86."""
DIVIDED = """
attention divided over b, h {
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  in norm[b, h, i]
  s = sum[d](q * k) / sqrt(D) where j <= i
  o[i, e] = sum[j](exp(s) / norm * v)
  out o
}
"""


@pytest.fixture(scope="module")
def kernels() -> list[Candidate]:
    return [c for n in VARIED for c in einfuse.compile(n).candidates("triton", torch.bfloat16, True, {}, "sm_90")]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, tuple[int, int]]]:
    """Devices that are not there, by index: their compute capabilities."""
    found: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[device.index])
    devices.target_of.cache_clear()
    yield found
    devices.target_of.cache_clear()


@pytest.fixture
def switch() -> Iterator[None]:
    """torch's switch for products of fp32, put back."""
    held = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(held)


@pytest.mark.slow
def test_hazard_2_programs_ask_for_no_more_shared_memory_than_a_gpu_has() -> None:
    """Width 256 asks for most: 100 KB on a GPU of 227, more than sm_86 has."""
    whole = einfuse.compile("full")
    wide = einfuse.cross_compile(whole, ("sm_86",), torch.bfloat16, False, D=256, E=256)
    found = einfuse.cross_compile(whole, OTHERS, torch.bfloat16, False)
    assert {k.target for k in found} == set(OTHERS)
    assert TARGETS["sm_89"].shared == TARGETS["sm_86"].shared
    for k in (*wide, *found):
        assert (k.spills, k.shared <= TARGETS[k.target].shared) == (0, True), k  # type: ignore[index]  # a target's name
        assert k.matrix == {"sm_100": "tcgen05", "gfx950": "mfma"}.get(k.target, "mma")


def test_hazards_4_and_5_two_kinds_of_gpu_in_one_process_take_kernels_of_their_own(gpus: dict[int, tuple[int, int]]) -> None:
    gpus |= {0: (8, 6), 1: (9, 0)}
    first, second = (backends.choose(torch.device("cuda", n)) for n in (0, 1))
    assert (first.identity, second.identity) == ("triton sm_86", "triton sm_90")  # which keys of plans and texts begin with
    assert backends.choose(torch.device("cuda", 0), "triton").identity == first.identity
    assert first.tilings("bf16", 64, 0) != second.tilings("bf16", 64, 0)
    plan = einfuse.compile("causal").candidates("triton", torch.bfloat16, False, {}, "sm_80")[0].plan
    assert isinstance(plan, KernelPlan)
    assert first.emit(plan) != second.emit(plan)


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((7, 5), "sm_86"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_120"),
        ((12, 1), "sm_120"),
    ],
)
def test_hazard_5_a_gpu_is_taken_for_one_that_asks_no_more(capability: tuple[int, int], target: str) -> None:
    assert of_nvidia(capability) == target


@pytest.mark.usefixtures("switch")
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_hazard_19_fp32_products_are_as_exact_as_torch_is_told(
    gpus: dict[int, tuple[int, int]], capability: tuple[int, int]
) -> None:
    gpus[0] = capability
    attention = einfuse.compile("causal")
    given = Given.of(attention.cascade, {n: torch.randn(1, 1, 32, 16) for n in "qkv"}, {})
    plan = attention.candidates("triton", torch.float32, False, {}, "sm_90")[0].plan
    assert isinstance(plan, KernelPlan)
    found, kinds = {}, set()
    for said in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(said)
        backend = backends.choose(torch.device("cuda", 0))
        assert isinstance(backend, backends.TritonBackend)
        found[said] = set(re.findall(r'input_precision="(\w+)"', backend.emit(plan)))
        kinds.add(attention.program.key(given, replace(backend, processors=1)))
        assert backend.tilings("f32", 64, 0)[0] == ((32, 32) if said == "highest" else backend.tilings("bf16", 128, 0)[0])
    assert found == {"highest": {"ieee"}, "high": {"tf32"}, "medium": {"tf32"}}
    assert len(kinds) == 2, "a call that was made ready is not that of the other precision"


@pytest.mark.usefixtures("switch")
def test_hazard_19_a_repeated_call_is_as_exact_as_torch_is_told_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signature is compared before anything is chosen for it."""

    class OnGpu(torch.Tensor):
        is_cpu = False

    monkeypatch.setattr(prepared, "PLAIN", frozenset({torch.Tensor, OnGpu}))
    calls = einfuse.compile("causal")._calls
    given = [torch.randn(1, 1, 32, 16) for _ in range(3)]
    signatures: dict[tuple[type, str], set[object]] = {}
    for kind in (torch.Tensor, OnGpu):
        for said in ("highest", "high", "highest"):
            torch.set_float32_matmul_precision(said)
            signatures[kind, said] = signatures.get((kind, said), set()) | {
                calls._signature([x.as_subclass(kind) for x in given], {})
            }
    assert all(len(x) == 1 for x in signatures.values())
    assert signatures[OnGpu, "high"] != signatures[OnGpu, "highest"]
    assert signatures[torch.Tensor, "high"] == signatures[torch.Tensor, "highest"], "a processor has no such products"


@pytest.mark.parametrize(
    ("name", "target"),
    [("gfx942:sramecc+:xnack-", "gfx942"), ("gfx950", "gfx950"), ("gfx90a", "gfx942"), ("gfx1100", "gfx942")],
)
@pytest.mark.usefixtures("switch")
def test_hazard_6_memory_of_amd_is_that_of_the_architecture(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_amd(name) == target
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("Properties", (), {"gcnArchName": name}))
    assert devices.target_of.__wrapped__(torch.device("cuda", 0)) == target
    monkeypatch.setattr(backends, "target_of", lambda device: target)
    torch.set_float32_matmul_precision("high")
    assert backends.choose(torch.device("cuda", 0)).identity == f"triton {target}", "tf32 is NVIDIA's"


def test_hazard_6_a_gpu_that_triton_is_not_tested_for_runs_plain_torch() -> None:
    assert backends.choose(torch.device("xpu")).name == "torch"


def test_hazard_7_every_launch_says_whether_multiply_adds_may_be_one(kernels: list[Candidate]) -> None:
    for c in kernels:
        assert re.search(r"enable_fp_fusion(=|\": )True", c.source), c.plan.name


def test_hazard_14_no_kernel_reads_what_it_writes(kernels: list[Candidate]) -> None:
    """So no program waits for another, and none for itself."""
    seen = 0
    for c in kernels:
        if isinstance(c.plan, KernelPlan):
            written = {op.tensor for op in operations(c.plan) if isinstance(op, Store)}
            read = {op.tensor for op in operations(c.plan) if isinstance(op, Load)}
            assert written, c.plan.name
            assert not written & read, c.plan.name
            seen += 1
    assert seen > 20


def test_hazard_15_blocks_that_32_bits_do_not_span_are_refused(tmp_path: Path) -> None:
    """Where a block begins is counted in 64 bits, what is inside of it in 32: keys with tokens side by side, 2^25 of them."""
    found = einfuse.compile("causal").candidates("triton", torch.bfloat16, False, {}, "sm_90")[0]
    kernel = build(found.plan, found.source, tmp_path)  # type: ignore[arg-type]  # no scan
    launches: list[object] = []
    vars(kernel.module)["launch"] = lambda *args: launches.append(args)
    sizes = {"B": 1, "H": 2, "Nk": 4096, "Nq": 4096, "group": 1}

    def run(features: int, batch: int = 4096 * 64) -> None:
        tensors = {n: torch.empty(1, 2, 4096, 64, dtype=torch.bfloat16, device="meta") for n in "qvo"}
        k = torch.empty_strided((1, 2, 4096, 64), (batch, batch, 1, features), dtype=torch.bfloat16, device="meta")
        kernel({**tensors, "k": k}, {}, sizes)

    run(features=1 << 25, batch=1 << 40)
    run(features=1 << 31)  # passed as a number of 64 bits
    assert len(launches) == 2
    with pytest.raises(
        einfuse.EinfuseError, match=r"causal: .* block of k must lie within 2\^31 .* a stride of 67108864 along axis 3"
    ):
        run(features=1 << 26)
    assert len(launches) == 2


def test_hazard_16_grids_have_one_dimension(kernels: list[Candidate]) -> None:
    """Which may have 2^31 programs; the others end at 65,535."""
    for c in kernels:
        assert set(re.findall(r"program_id\((\d)\)", c.source)) <= {"0"}, c.plan.name
        assert not re.search(r"\[\([^)]*,\s*[^)\s]", c.source.split("def launch")[-1].split("(", 1)[1]), c.plan.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_hazard_17_what_padding_divides_by_is_not_seen(dtype: torch.dtype) -> None:
    """20 rows in a tile of 32: beyond them a kernel divides by what it reads there, which is 0."""
    attention = einfuse.compile(DIVIDED, backend="triton")
    torch.manual_seed(0)
    leaves = [torch.randn(1, 1, 20, 16).to(dtype).requires_grad_() for _ in range(3)]
    leaves.append((1 + torch.rand(1, 1, 20)).to(dtype).requires_grad_())
    wide = [x.detach().double().requires_grad_() for x in leaves]
    along = torch.randn(1, 1, 20, 16).to(dtype)
    found = torch.autograd.grad(attention(*leaves), leaves, along)
    truth = torch.autograd.grad(attention.reference(*wide), wide, along.double())
    slack = 1e-5 if dtype == torch.float32 else 3e-2
    for x, y in zip(found, truth, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=slack, atol=slack * y.abs().max().item())


def test_hazard_21_products_have_the_blocks_that_matrix_units_take(kernels: list[Candidate]) -> None:
    found = 0
    for c in kernels:
        if isinstance(c.plan, KernelPlan):
            layout = Layout(c.plan)
            dots = [op for op in operations(c.plan) if isinstance(op, Dot) and layout.multiplies(op)]
            found += len(dots)
            assert all(layout.blocks[r] >= MATRIX for op in dots for r in (*op.a.dims, *op.b.dims)), c.plan.name
    assert found > 40


@pytest.mark.parametrize("name", ["causal", "gqa", "retention"])
def test_hazard_22_what_is_measured_is_what_a_call_launches(name: str) -> None:
    """Every tensor of a recorded launch has the dtype that its kernel was printed for: gradients, statistics and states too."""
    attention = einfuse.compile(name)
    given = example_inputs(attention.cascade, torch.bfloat16, 0, Shape(1, 4, 200, 200, (64, 64), 2))
    call = arguments(attention.cascade, (), {n: x.to("meta") if isinstance(x, torch.Tensor) else x for n, x in given.items()})
    kinds = set()
    for x in launched(attention, *call, backward=True, backend=TritonBackend(processors=132)):
        measured = job(x, "sm_90")
        assert measured.source == x.kernel.source
        for t in x.kernel.plan.tensors:
            assert DTYPE[t.storage] == x.given.tensors[t.name].dtype, f"{t.name} of {x.kernel.plan.name}"
            kinds.add((t.name.startswith("d_"), t.storage))
    assert kinds >= {(False, "bf16"), (True, "bf16"), (True, "f32")}


def test_scans_are_among_them(kernels: list[Candidate]) -> None:
    assert any(isinstance(c.plan, ScanPlan) for c in kernels)


def test_a_target_that_is_not_in_the_table_is_refused() -> None:
    unknown: Any = "sm_75"
    with pytest.raises(einfuse.EinfuseError, match="there is no target 'sm_75'; choose from sm_80, sm_86, sm_89"):
        einfuse.cross_compile(einfuse.compile("full"), (unknown,))
