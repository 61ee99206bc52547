"""Kernels compiled for GPUs that are not here: nothing spills to memory, and Hopper multiplies bf16 with wgmma.

Runs in a process of its own, because Triton's interpreter cannot be switched off once it is chosen.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys
from dataclasses import asdict
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from einfuse.codegen.triton import Options, block_sizes, emit, measure
from einfuse.codegen.plan import Arg, Block, KernelPlan
from plans import CASES, Code

results = []
for name, storage, width, target in json.loads(sys.argv[3]):
    tile, step = block_sizes(storage, width, 2 * name.endswith("backward"), target)
    plan = CASES[name](storage=storage, widths=(width, width), tile=tile, step=step).plan
    results.append(asdict(measure(plan, emit(plan, Options(target)), target, Path(sys.argv[2]))))
code = Code(("i",))
i = code.coordinate("i")
x = code.load("x", "x", i)
for fn in ("tanh", "log1p", "softplus", "sigmoid", "erf", "sin", "cos", "exp", "sqrt", "rsqrt", "log2", "abs", "sign"):
    x = code.map("f_" + fn, fn, x)
x = code.map("power", "^", x, code.load("y", "x", i))
whole = code.map("whole", "floor", x)
for fn in ("//", "%", "max", "min"):
    whole = code.map("g", fn, whole, code.map("shifted", "-", i, code.const("seven", 7)))
odd = code.map("odd", "not", code.map("even", "==", whole, i))
code.store("y", i, value=code.map("all", "select", odd, code.map("real", "float", whole), x))
tensors = (Arg("x", 1, "f32"), Arg("y", 1, "bf16", True))
plan = KernelPlan("functions", "all", (), Block("i", "N", 128), (), tensors, (), ("N",), (code.region,))
for target in ("sm_80", "gfx942"):
    results.append(asdict(measure(plan, emit(plan, Options(target)), target, Path(sys.argv[2]))))
print(json.dumps(results))
"""

CASES = [
    ("softmax", "bf16", 64, "sm_90"),
    ("softmax_backward", "bf16", 64, "sm_90"),
    ("tabulated", "bf16", 128, "sm_80"),
    ("sigmoid", "bf16", 64, "gfx942"),
]


def test_compiled_kernels(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path / "triton")
    }
    arguments = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[2] / "helpers"), str(tmp_path), json.dumps(CASES)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert [r["spills"] for r in results] == [0] * len(results)
    assert [r["matrix"] for r in results[: len(CASES)]] == ["wgmma", "wgmma", "mma", "mfma"]
    assert all(0 < r["registers"] <= 512 for r in results)
    assert all(r["shared"] > 16 * 1024 for r in results[:3])
