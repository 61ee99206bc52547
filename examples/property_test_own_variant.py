"""A variant of one's own, tested by properties: hypothesis draws sizes and masks, the laws of the mechanism are checked on each.

`einfuse.testing` draws the masks. `pip install hypothesis` is needed.
"""

from __future__ import annotations

import os
import sys

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from rich.console import Console

import einfuse
from einfuse.runtime.verify import Shape, example_inputs
from einfuse.testing import masks

SPEC = """
def clipped_softmax[j](s, low, high) = clamp((high - low) * softmax[j](s) + low, 0, 1)

attention clipped over b, h {{
  rank i: query; rank j: key; rank d, e: feature
  in q[b, h, i, d]
  in k[b, h // group, j, d]
  in v[b, h // group, j, e]
  {inputs}
  s = sum[d](q * k) / sqrt(D) where {mask}
  o[i, e] = sum[j](clipped_softmax[j](s, -0.1, 1.1) * v)
  out o
}}
"""

INPUTS = {"prefix": "in prefix[b]: int", "doc": "in doc[b, N]: int", "pad": "in pad[b, j]: bool"}


def compiled(mask: str) -> einfuse.Attention:
    """The variant (weights may be exactly 0 and exactly 1; Bondarenko et al., 2023) under a drawn mask."""
    used = "\n  ".join(text for name, text in INPUTS.items() if name in mask)
    return einfuse.compile(SPEC.format(mask=mask.replace("window", "5"), inputs=used), backend="torch")


def main(examples: int = 12) -> int:
    """Checks ``examples`` drawn cases for each law; returns how many were run. A law that fails shows its smallest counterexample."""
    ran = 0
    quick = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        derandomize=True,
    )

    @quick
    @given(masks(), st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
    def kernel_is_the_oracle(mask: str, queries: int, keys: int, seed: int) -> None:
        nonlocal ran
        ran += 1
        shape = Shape(1, 2, queries, keys, (3, 2), 1)
        attention = compiled(mask)
        # values only: the clip has a kink wherever a weight meets it, where two right gradients may differ
        found = einfuse.verify(attention, backends=["torch"], dtypes=["float64"], shape=shape, seed=seed, gradients=False)
        assert found.ok, [r for r in found.rows if not r.ok]

    @quick
    @given(masks(), st.integers(1, 9), st.integers(0, 1000))
    def outputs_scale_with_the_values(mask: str, keys: int, seed: int) -> None:
        nonlocal ran
        ran += 1
        attention = compiled(mask)
        inputs = example_inputs(attention.cascade, torch.float64, seed, Shape(1, 2, 4, keys, (3, 2), 1))
        v = inputs.pop("v")
        assert isinstance(v, torch.Tensor), "values are a tensor"
        once, twice = attention(**inputs, v=v), attention(**inputs, v=2 * v)
        torch.testing.assert_close(twice, 2 * once)  # type: ignore[operator]  # one output

    for law in (kernel_is_the_oracle, outputs_scale_with_the_values):
        law()
        Console(highlight=False).print(f"{law.__name__.replace('_', ' ')}: {examples} cases at most, none fails")
    return ran


if __name__ == "__main__":
    os.environ.setdefault("TRITON_INTERPRET", "1")
    sys.exit(0 if main() else 1)
