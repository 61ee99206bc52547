"""Runs attentions whose kernels are built with -fsanitize=address,undefined: `test_sanitize.py` starts this, with what that needs.

    python tests/lanes/sanitized.py GROUP ...

Every case runs forward and backward at sizes that no tile divides, on tensors that end where their memory ends: a kernel that reads or
writes one element too far, overflows an index or assumes an alignment ends the process, with the place in its text.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

import einfuse
from einfuse.ir import Scalar
from einfuse.runtime.verify import Shape, example_inputs

SHAPES = (Shape(), Shape(1, 1, 1, 1100), Shape(3, 2, 131, 67))
SQUARE = (Shape(keys=37), Shape(1, 1, 259, 259), Shape(3, 2, 131, 131))
SMALL = (Shape(1, 4, 1, 1), Shape(9, 8, 16, 16), Shape(1, 2, 3, 0))
THREADS = 4
"""More than some shapes have heads: keys are split, and threads share the columns of a scan."""


@dataclass(frozen=True, slots=True)
class Case:
    """A spec of the library, the dtype of its tensors, and the shapes of its calls.

    The first case of a group runs at all of them, also without gradients; the others take one in turn: a shape has kernels of its own, and
    what builds kernels under a sanitizer is what takes the time.
    """

    spec: str
    dtype: torch.dtype = torch.float32
    shapes: tuple[Shape, ...] = SHAPES
    widths: tuple[int, ...] = (24, 40)


HALF, BRAIN = torch.float16, torch.bfloat16
ODD, FULL = (7, 5), (64, 64)
GROUPS: dict[str, tuple[Case, ...]] = {
    "softmax": (
        Case("full", shapes=(*SHAPES, *SMALL), widths=ODD),
        Case("causal", BRAIN, (*SHAPES, *SMALL)),
        Case("gqa", HALF, widths=FULL),
        Case("alibi_window", torch.float64),
        Case("padding", BRAIN, widths=ODD),
        Case("sink", HALF),
    ),
    "masks": (
        Case("document", shapes=SQUARE),
        Case("sliding_window", BRAIN, SQUARE, widths=FULL),
        Case("swin", shapes=SQUARE),
        Case("block_table"),
        Case("paged", HALF),
        Case("streaming", torch.float64, SQUARE),
    ),
    "scans": (
        Case("gated_delta", shapes=SQUARE),
        Case("retention", BRAIN, SQUARE, widths=ODD),
        Case("linear", shapes=SQUARE, widths=FULL),
        Case("ssd", HALF, SQUARE),
        Case("rwkv6", shapes=SQUARE, widths=ODD),
    ),
    "weights": (
        Case("topk", widths=ODD),
        Case("random_keys", shapes=SQUARE),
        Case("t5_bias", HALF, SQUARE),
        Case("shaw", BRAIN, SQUARE),
        Case("deberta", shapes=SQUARE),
        Case("talking_heads"),
        Case("taylor2", shapes=SQUARE, widths=(5, 7)),
        Case("dropout"),
    ),
}


def placed(x: torch.Tensor, strided: bool) -> torch.Tensor:
    """A tensor at the end of its memory: contiguous, or rows of a longer tensor that starts off any alignment.

    The first kind is torch's memory, around which the sanitizer looks; a load of a vector that the sanitizer knows nothing of ends the
    process at the second kind, behind which there is no memory.
    """
    if not strided or x.dim() < 2 or not x.numel():
        return x.contiguous().clone()
    room = guarded([n + (k == x.dim() - 2) for k, n in enumerate(x.shape)], x.dtype)
    return room.narrow(-2, 1, x.shape[-2]).copy_(x)


def guarded(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor that ends where a page does, behind which nothing may be read or written. Its memory is never given back."""
    size = math.prod(shape) * dtype.itemsize
    room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    start = _C.mmap(None, room + mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    assert start not in (None, ctypes.c_void_p(-1).value), "no memory"
    assert _C.mprotect(ctypes.c_void_p(start + room), mmap.PAGESIZE, 0) == 0, "no guard"
    memory = (ctypes.c_char * size).from_address(start + room - size)
    return torch.frombuffer(memory, dtype=dtype).view(*shape)


_C = ctypes.CDLL(None)
_C.mmap.restype = ctypes.c_void_p
_C.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_C.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def inputs(attention: einfuse.Attention, case: Case, shape: Shape, strided: bool) -> dict[str, torch.Tensor | Scalar]:
    """Arguments of a call; those of the second kind leave every row without a key where a table of booleans decides."""
    found: dict[str, torch.Tensor | Scalar] = {}
    for name, x in example_inputs(attention.cascade, case.dtype, 1, shape).items():
        if isinstance(x, torch.Tensor):
            x = placed(torch.zeros_like(x) if strided and x.dtype == torch.bool else x, strided)
            x.requires_grad_(x.is_floating_point())
        found[name] = x
    return found


def differentiated(found: torch.Tensor | tuple[torch.Tensor, ...], given: Iterable[object]) -> None:
    outs = [o for o in (found if isinstance(found, tuple) else (found,)) if o.requires_grad]
    leaves = [x for x in given if isinstance(x, torch.Tensor) and x.requires_grad]
    if outs and leaves:
        torch.autograd.grad(outs, leaves, [torch.ones_like(o) for o in outs], allow_unused=True)


def whole_calls(case: Case, number: int) -> Iterator[str]:
    """Runs the case of that number in its group; yields what is run next."""
    attention = einfuse.compile(case.spec, backend="cpu")
    for shape in (case.shapes[number % len(case.shapes)],) if number else case.shapes:
        for strided in (False, True):
            yield f"{case.spec} {case.dtype} {shape} strided={strided}"
            given = inputs(attention, case, replace(shape, widths=case.widths, group=min(2, shape.heads)), strided)
            if not number:
                with torch.no_grad():
                    attention(**given)
            differentiated(attention(**given), given.values())


def other_calls() -> Iterator[str]:
    """Parts of the keys and their merge, tokens one by one, every prefix, sequences of different lengths."""
    q, k, v = (torch.randn(1, 2, n, 24).requires_grad_() for n in (3, 37, 37))
    yield "state, merge, finalise"
    full = einfuse.compile("full", backend="cpu")
    differentiated(full.finalise(full.merge(full.state(q, k, v, keys=(0, 5)), full.state(q, k, v, keys=(5, 37)))), (q, k, v))
    yield "prefix"
    differentiated(full.prefix(q, k, v), (q, k, v))
    yield "step"
    scan, state = einfuse.compile("delta", backend="cpu"), None
    for n in (1, 3, 17):
        given = inputs(scan, Case("delta"), Shape(1, 2, n, n), False)
        found, state = scan.step(state, **given)
        differentiated(found, given.values())
    yield "sequences of different lengths"
    rows = [torch.randn(n, 2, 24) for n in (1, 30, 0, 6)]
    x = torch.cat(rows).requires_grad_()
    bounds = torch.tensor([0, 1, 31, 31, 37], dtype=torch.int32)
    packed = einfuse.varlen(einfuse.compile("causal", backend="cpu"), x, x, x, cu_seqlens_q=bounds)
    differentiated(packed, (x,))


def one_too_far(strided: bool) -> Iterator[str]:
    """A kernel that is told of one key more than there are: this must end the process, or the lane sees nothing."""
    attention = einfuse.compile("full", backend="cpu")
    q, k, v = (placed(torch.randn(1, 2, n, 24), strided) for n in (3, 37, 37))
    out = attention(q, k, v)
    (built,) = attention.program.built.values()
    yield "one key too far"
    assert isinstance(out, torch.Tensor)
    given = {"q": q, "k": k, "v": v, "o": out}
    built.kernel(given, {}, {"B": 1, "H": 2, "Nq": 3, "Nk": 38, "D": 24, "E": 24, "group": 1})


def main(groups: Sequence[str]) -> None:
    os.environ.pop("LD_PRELOAD", None)  # the libraries are loaded; under them the compiler takes twice as long
    torch.set_num_threads(THREADS)
    others = {"other": other_calls, "heap": lambda: one_too_far(False), "guard": lambda: one_too_far(True)}
    for group in groups:
        cases = (what for n, case in enumerate(GROUPS.get(group, ())) for what in whole_calls(case, n))
        for what in others.get(group, lambda cases=cases: cases)():
            print(what, flush=True)
    print("whole")


if __name__ == "__main__":
    main(sys.argv[1:])
