"""What einfuse finds on this machine: versions, compiler, processor, GPU, cache; and what to do where something is missing."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from einfuse import _files as files
from einfuse._cli import screen
from einfuse.runtime import cache
from einfuse.runtime.backends import compiler

WIDE = ("avx512f", "avx512_bf16", "amx_bf16", "avx2", "fma", "asimd", "sve", "bf16")

PATIENCE = 10
"""Seconds for a compiler to say its version."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. ``ok`` is false where something works worse than it could; ``advice`` says what to do."""

    what: str
    found: str
    ok: bool = True
    advice: str = ""


def doctor(args: argparse.Namespace) -> int:
    checks: tuple[Callable[[], Finding], ...] = (_python, _torch, _triton, _compiler, _processor, _gpu, _cache)
    findings = [check() for check in checks]
    ok = all(f.ok for f in findings)
    if args.json:
        screen.report({"ok": ok, "checks": [asdict(f) for f in findings]})
        return 0 if ok else 1
    shown = screen.table("", "found", "")
    for f in findings:
        shown.add_row(f.what, f.found, screen.verdict(f.ok, "look"))
    console = screen.out()
    console.print(shown)
    for f in findings:
        if f.advice:
            console.print(f"{f.what}: {f.advice}")
    return 0 if ok else 1


def _python() -> Finding:
    return Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _torch() -> Finding:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    return Finding("torch", f"{torch.__version__} ({build} build, {torch.get_num_threads()} threads)")


def _triton() -> Finding:
    try:
        found = version("triton")
    except PackageNotFoundError:
        on_linux = platform.system() == "Linux"
        advice = "pip install triton" if on_linux else "Triton exists for Linux only; CPU kernels work without it"
        return Finding("triton", "none", not on_linux, advice)
    return Finding("triton", found)


def _compiler() -> Finding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the advice below says it
        path = compiler()
    if path is None:
        advice = "install g++ or clang++ (or set CXX): CPU kernels run as tiled torch code until then, several times slower"
        return Finding("C++ compiler", "none", False, advice)
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("C++ compiler", path, False, f"it does not run ({error}): set CXX to another")
    said = (done.stdout or done.stderr).splitlines() or [""]
    advice = "" if done.returncode == 0 else f"it ends with {done.returncode}: set CXX to another"
    return Finding("C++ compiler", f"{path}: {said[0]}", not advice, advice)


def _processor() -> Finding:
    info = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in info.read_text().split("\n\n")[0].splitlines() if info.is_file() else ():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    model = fields.get("model name") or platform.processor() or platform.machine()
    wide = [f for f in WIDE if f in flags]
    return Finding("processor", f"{model}, {os.cpu_count()} cores" + (f", {' '.join(wide)}" if wide else ""))


def _gpu() -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        return Finding("GPU", ", ".join(names))
    if Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists():
        return Finding(
            "GPU", "present, but not usable by this torch", False, "install a torch build for it (https://pytorch.org)"
        )
    return Finding("GPU", "none: Triton kernels run in Triton's interpreter, for tests only")


def _cache() -> Finding:
    found = cache.entries(cache.place() / cache.LAYOUT)
    held = f"{files.shown(cache.place())}: {len(found)} files, {sum(x.size for x in found) / 2**20:.1f} MiB"
    refused = cache.refusal()
    if refused is None and cache.place().exists() and not os.access(cache.place(), os.W_OK):
        refused = "it cannot be written"
    advice = f"not used: {refused}; kernels are built in every process (the folder is {cache.FOLDER})" if refused else ""
    return Finding("cache", held, not refused, advice)
