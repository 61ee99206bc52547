"""What a process imports before its first result: nothing that only other work needs."""

import os
import subprocess
import sys

import pytest

import einfuse

_PROCESS = """
import gc, sys, torch, einfuse
assert gc.isenabled()
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


@pytest.mark.slow
def test_a_warm_start_imports_no_printer_and_no_parser(tmp_path) -> None:
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
