"""Two normalisers that no library has, each a definition in the spec: fused, differentiated and verified like any other.

Nothing but the text changes: forward and backward kernels on every back end follow from it.
"""

from __future__ import annotations

import os
import sys

import torch
from rich.console import Console

import einfuse

BODY = """
attention {name} over b, h {{
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h, j, d]
  in v[b, h, j, e]
  s = sum[d](q * k) / sqrt(D) where j <= i
  o[i, e] = sum[j]({name}[j](s) * v)
  out o
}}
"""

NORMALISERS = {
    # may attend to nothing at all: the 1 is a key that has no value
    "quiet": "def quiet[j](s) { p = exp(s); return p / (1 + sum[j](p)) }",
    # no exponential, weights of exactly zero, and no row needs to sum to 1
    "relu_squared": "def relu_squared[j](s) { return relu(s)^2 / count[j](s) }",
}


def main(backends: tuple[str, ...] = ("cpu", "triton"), length: int = 96) -> dict[str, einfuse.Certificate]:
    console = Console(highlight=False, markup=False)
    certificates = {}
    for title, definition in NORMALISERS.items():
        attention = einfuse.compile(definition + BODY.format(name=title))
        console.print(f"\n{definition}")
        for report in attention.passes():
            console.print(f"  passes over the keys: {report.before} -> {report.after}")

        q, k, v = (torch.randn(1, 2, length, 32, requires_grad=True) for _ in range(3))
        out = attention(q, k, v)
        assert isinstance(out, torch.Tensor), "one output"
        out.square().sum().backward()
        console.print(
            f"  output {tuple(out.shape)}, |dq| {q.grad.norm():.3f}, |dk| {k.grad.norm():.3f}, |dv| {v.grad.norm():.3f}"
        )

        certificates[title] = found = einfuse.verify(attention, backends=backends)
        worst = max(r.error / r.allowed for r in found.rows if r.allowed)
        console.print(f"  {len(found.rows)} comparisons with the oracle: {'all good' if found.ok else 'WRONG'}", end="")
        console.print(f", at most {worst:.0%} of the error allowed")
    return certificates


if __name__ == "__main__":
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels then run on the CPU, in its interpreter
    sys.exit(0 if all(c.ok for c in main().values()) else 1)
