"""The texts that einfuse makes for one spec, stage by stage: a change of any of them is seen in a review."""

import pytest
import torch

import einfuse
from einfuse.codegen import cpu
from einfuse.ir.pipeline import PASSES
from einfuse.runtime.backends import BackendName

SPEC = "alibi_window"


@pytest.mark.parametrize("stage", PASSES)
def test_cascade(stage: str, golden) -> None:
    golden(einfuse.compile(SPEC).ir(after=stage) + "\n")


def test_derivation(golden) -> None:
    (report,) = einfuse.compile(SPEC).passes()
    lines = [f"{report.rank}: {report.before} -> {report.after}"]
    lines += [f"{d.reader} {d.how} {d.statistic} with {d.detail} ({d.proof})" for d in report.decisions]
    golden("\n".join(lines) + "\n")


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_kernels(backend: BackendName, golden) -> None:
    golden(einfuse.compile(SPEC).source(backend, torch.bfloat16, backward=True))


def test_cpu_kernel(golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the signature on: what stands before is the same in every kernel, and set for the machine's vectors."""
    monkeypatch.setattr(cpu, "caches", cpu.Caches)  # of no machine in particular
    text = einfuse.compile(SPEC).source("cpu", torch.float32)
    golden(text[text.index('extern "C"') :])
