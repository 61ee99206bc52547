"""The merge law of folds, checked by numbers: what the rules of `ir.verify` cannot see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from einfuse.ir.interpreter import interpret
from einfuse.ir.nodes import Cascade, Scalar
from einfuse.ir.rewrite import map_folds


def merge_law(
    cascade: Cascade, sizes: Mapping[str, int], inputs: Mapping[str, torch.Tensor | Scalar], tolerance: float = 1e-8
) -> None:
    """V14: a fused cascade gives the same result whatever the blocks and the order of merging (float64).

    Raises AssertionError: a wrong carry is our fault, never the user's.
    """
    whole = interpret(cascade, inputs, sizes)
    for step, split in ((3, 1), (2, 3), (1, 2)):
        parts = interpret(_cut(cascade, step, split), inputs, sizes)
        for name, value in whole.items():
            same = torch.allclose(parts[name], value, rtol=tolerance, atol=tolerance, equal_nan=True)
            assert same, f"{name} depends on how the fold is cut into blocks (step {step}, split {split}): a carry is wrong"


def _cut(cascade: Cascade, step: int, split: int) -> Cascade:
    return map_folds(cascade, lambda f: f if f.ranges else replace(f, step=step, split=split))
