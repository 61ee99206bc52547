"""`build`: a generated module's text made callable. It is known by a path, because Triton reads a kernel's source back."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from einfuse import _files as files
from einfuse.codegen.plan import KernelPlan
from einfuse.codegen.triton import reach
from einfuse.codegen.triton.names import identifier
from einfuse.ir import DoesNotFitError, EinfuseError

if TYPE_CHECKING:
    import torch


MODULES: WeakValueDictionary[str, ModuleType] = WeakValueDictionary()
"""The texts that kernels were made of, by name, as long as one of the kernels is there."""


@dataclass(frozen=True, slots=True)
class TritonKernel:
    """A loaded kernel; a call writes the plan's output tensors. ``module`` is the imported text, ``blocks`` what `reach` checks."""

    plan: KernelPlan
    module: ModuleType
    blocks: Mapping[str, reach.Axes] = field(default_factory=dict)

    def __call__(
        self,
        tensors: Mapping[str, torch.Tensor],
        params: Mapping[str, int | float],
        sizes: Mapping[str, int],
        **options: int,
    ) -> int:
        """Runs it, and says how many values the compiler could not keep in registers (0 inside the interpreter).

        Raises EinfuseError for tensors on the CPU outside the interpreter and for strides that blocks do not bear (`reach`),
        DoesNotFitError where the device has not the memory that a program shares.
        """
        first = next(iter(tensors.values()), None)
        if first is not None and first.device.type == "cpu" and not _interprets():
            raise EinfuseError(
                f"the triton back end runs on a GPU, and {next(iter(tensors))} is on the CPU: move the tensors, choose the cpu back end, or "
                "set TRITON_INTERPRET=1 before triton is imported to run kernels in Triton's interpreter"
            )
        reach.check(self.plan.name, self.blocks, tensors)
        with _device(tensors), _quiet():
            try:
                compiled = self.module.launch(tensors, params, sizes, **options)
            except _out_of_resources() as error:
                raise DoesNotFitError(f"{self.plan.name} does not fit the device: {error}") from error
        return getattr(compiled, "n_spills", None) or 0


@functools.cache
def _out_of_resources() -> type[Exception]:
    found: type[Exception] = importlib.import_module("triton.runtime.errors").OutOfResources
    return found


def _device(tensors: Mapping[str, torch.Tensor]) -> AbstractContextManager[object]:
    """Triton launches on the current device; make that the one the tensors are on."""
    import torch

    first = next(iter(tensors.values()), None)
    return torch.cuda.device(first.device) if first is not None and first.is_cuda else nullcontext()


def _interprets() -> bool:
    knobs: Any = importlib.import_module("triton").knobs
    return bool(knobs.runtime.interpret)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside Triton's interpreter: no warnings for inf and NaN, as on a GPU (blocks hold padding and masked points)."""
    if not _interprets():
        yield
        return
    import numpy

    with numpy.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(plan: KernelPlan, source: str, directory: Path) -> TritonKernel:
    """The kernel of a text that `emit` made."""
    blocks = reach.axes(plan) if isinstance(plan, KernelPlan) else {}  # scans count everything in 64 bits
    return TritonKernel(plan, module(identifier(plan.name), source, directory), blocks)


def module(kernel: str, source: str, directory: Path) -> ModuleType:
    """A text run from memory and kept for readers in ``directory`` under a name made of its contents."""
    name = files.stem(kernel, source)
    made = MODULES.get(name)
    if made is None:
        path = directory / f"{name}.py"
        made = ModuleType(name)
        made.__file__ = str(path)
        files.keep_text(path, source, made)
        exec(compile(source, str(path), "exec"), made.__dict__)  # our own text, made by `emit`
        MODULES[name] = made
    return made
