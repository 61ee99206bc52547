"""What a process imports before its first result: nothing that only other work needs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import einfuse

EXAMPLE = Path(__file__).parents[1] / "examples" / "alibi_window.attn"
_PROCESS = """
import gc, sys, torch, einfuse
assert gc.isenabled()
assert torch.ops.einfuse.attention
q = torch.randn(1, 1, 8, 16)
einfuse.compile("causal")(q, q, q)
print(*sys.modules)
"""
UNUSED = (
    "einfuse.dsl",
    "einfuse.codegen.triton",
    "einfuse.codegen.cpu.kernel",
    "einfuse.runtime.verify",
    "einfuse.runtime.bench",
    "jinja2",
    "lark",
    "sympy",
    "transformers",
)


_FRONT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
from einfuse import dsl
from einfuse.codegen import cpu, hold, lower, scan, triton
from einfuse.codegen.plan import plain
from einfuse.codegen.scan import ladder, team
from einfuse.ir.passes import pipeline
from einfuse.ir.passes.kernels import kernels
from einfuse.ir import Scan
from einfuse.runtime.specs import library

STORAGE = {"float": "f32", "int": "i64", "bool": "bool"}
specs = [(dsl.parse(dsl.read_spec(path), path.name), path.parent) for path in library().values()]
cascades = [dsl.elaborate(module, search=(folder,)) for module, folder in specs]
assert "numpy" not in sys.modules, "a text is read without numpy"
texts = 0
for cascade in cascades[::12]:
    for kernel in kernels(cascade):
        made = pipeline.run(kernel)
        storage = {t.name: STORAGE[t.dtype] for t in made.inputs} | dict.fromkeys(made.outs, "f32")
        static = {r.size: 64 for r in made.ranks if r.kind == "feature" and isinstance(r.size, str)}
        if not isinstance(kernel, Scan):
            plan = lower(made, storage, static)
            sources = [cpu.emit(plain(plan)), triton.emit(hold(plan, {}))]
        else:
            plan = scan.lower(made, storage, static)
            sources = [p.source for p in (*team.kernels(plan, 1), *ladder.kernels(plan, "sm_90"))]
        assert all(f"einfuse_kernel" in x or "@triton.jit" in x for x in sources), kernel.name
        texts += len(sources)
print(len(cascades), texts)
"""


@pytest.mark.slow
def test_the_front_end_runs_without_torch() -> None:
    """Every spec is elaborated; of one in twelve every pass runs, and C++ and Triton are printed."""
    run = subprocess.run([sys.executable, "-c", _FRONT], check=True, capture_output=True, text=True)
    elaborated, texts = map(int, run.stdout.split())
    assert elaborated == len(einfuse.list_specs())
    assert texts > elaborated // 8


def test_checking_a_file_imports_neither_torch_nor_numpy(tmp_path: Path) -> None:
    """What was derived once is read from disk."""
    text = "import sys; from einfuse.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    env = os.environ | {"EINFUSE_CACHE": str(tmp_path)}
    call = [sys.executable, "-c", text, "check", str(EXAMPLE)]
    first, again = (subprocess.run(call, env=env, check=True, capture_output=True, text=True).stdout for _ in range(2))
    assert "torch" not in first.split()
    assert first.startswith("1 file good")
    assert again.startswith("1 file good")
    assert not {"torch", "numpy", "sympy", "rich", "jinja2"} & set(again.split())


def test_looking_at_cascades_imports_no_torch() -> None:
    text = """
import sys
from einfuse.cli import main

for line in sys.argv[1:]:
    assert not main(line.split()), line
    assert "torch" not in sys.modules, line
"""
    lines = ("list sigmoid", "passes causal", "ir causal --after mask_ranges", "tiles streaming --shape 1,1,256,256")
    subprocess.run([sys.executable, "-c", text, *lines], check=True, capture_output=True)


@pytest.mark.parametrize(
    "order",
    [
        "einfuse, torch",
        "einfuse.runtime.kinds, torch, wave",
        "einfuse.runtime.ops, torch",
        "einfuse.runtime.backends, einfuse.runtime.ops, torch",
    ],
)
def test_torch_knows_the_operators_in_a_process_that_imports_both(order: str) -> None:
    """Also where a module of ours imports torch first: the operators import that module. Torch before einfuse: `_PROCESS`."""
    text = f"import sys, {order}; assert torch.ops.einfuse.attention; print(type(torch.__loader__).__module__, torch.__spec__.loader)"
    run = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert "einfuse" not in run.stdout, "torch keeps its own loader"


@pytest.mark.slow
def test_a_warm_start_imports_no_printer_and_no_parser(tmp_path: Path) -> None:
    env = os.environ | {"EINFUSE_CACHE": str(tmp_path), "CXXFLAGS": "-O0"}
    found = [
        subprocess.run([sys.executable, "-c", _PROCESS], env=env, check=True, capture_output=True, text=True) for _ in range(2)
    ]
    cold, warm = (set(p.stdout.split()) for p in found)
    assert "einfuse.dsl" in cold
    assert not warm & set(UNUSED)


def test_what_traces_functions_is_there_when_asked_for() -> None:
    for name in ("exp", "where", "masks", "score_mod", "functions", "dsl", "verify", "bench", "cross_compile", "Certificate"):
        assert getattr(einfuse, name) is not None
        assert name == "dsl" or name in dir(einfuse)
    with pytest.raises(AttributeError, match="no attribute 'expp'"):
        einfuse.expp  # noqa: B018
