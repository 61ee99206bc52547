"""A first spec: from the formula of a paper to a kernel, one step after the other.

What each part of the text means is said beside it; what the compiler makes of it is printed.
"""

from __future__ import annotations

import sys

import torch
from rich.console import Console

import einfuse

SPEC = '''
"""Attention that fades with distance (no paper): softmax(q . k / sqrt(D) - |i - j| / reach) v."""
attention fading(reach: float = 8.0) over b, h {   # every batch element and head is computed alone
  rank i: query; rank j: key; rank d, e: feature   # the axes, by kind
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) - abs(i - j) / reach # coordinates are integers, to be computed with
  o[i, e] = sum[j](softmax[j](s) * v)              # softmax is a definition of the prelude, nothing special
  out o
}
'''


def formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, reach: float) -> torch.Tensor:
    """The same in plain torch: every score in memory."""
    at = torch.arange(q.shape[-2])
    scores = q @ k.mT / q.shape[-1] ** 0.5 - (at[:, None] - at[None]).abs() / reach
    return torch.softmax(scores, -1) @ v


def main(backend: str | None = None, length: int = 64) -> float:
    """Returns the largest difference between the kernel and the formula, gradients included."""
    console = Console(highlight=False, markup=False)
    attention = einfuse.compile(SPEC, backend=backend)
    console.print(SPEC)
    for report in attention.passes():
        console.print(f"passes over the keys: {report.before} as written, {report.after} after fusing")
    console.print("\nthe cascade after fusing:\n" + attention.ir(after="online_fuse"))

    q, k, v = (torch.randn(2, 4, length, 32, requires_grad=True) for _ in range(3))
    worst = 0.0
    for reach in (8.0, 2.0):  # a number of the call: nothing is compiled again
        found, expected = attention(q, k, v, reach=reach), formula(q, k, v, reach)
        pairs = [(found, expected)]
        direction = torch.randn_like(expected)
        gradients = (torch.autograd.grad(x, (q, k, v), direction) for x in (found, expected))
        pairs += zip(*gradients, strict=True)
        worst = max(worst, *((a - b).abs().max().item() for a, b in pairs))
    console.print(f"largest difference from the formula, values and gradients: {worst:.1e}")
    return worst


if __name__ == "__main__":
    sys.exit(0 if main() < 1e-4 else 1)
