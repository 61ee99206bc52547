"""Drawn arguments of a mask that reads tensors, for its picture. Imported where there is such a mask: with torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from einfuse.ir import Cascade, Scalar
from einfuse.runtime import binding
from einfuse.runtime.attention import Attention
from einfuse.runtime.examples import Shape, example_inputs
from einfuse.runtime.given import Given
from einfuse.runtime.walks import Walks


@dataclass(frozen=True, slots=True)
class Arguments:
    """Those of a call, numbers that are left out among them."""

    given: Given

    @property
    def numbers(self) -> Mapping[str, Scalar]:
        return self.given.numbers

    @property
    def sizes(self) -> Mapping[str, int]:
        return self.given.sizes

    def tables(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """The tensors of these names."""
        return {n: x.numpy() for n, x in self.given.tensors.items() if n in names}

    def walk(self, cascade: Cascade, tile: tuple[int, int]) -> str:
        """The lists that a kernel walks by instead of tiles, in words; empty where it takes tiles."""
        chosen = Walks().choose(cascade, self.given, tile) if self.given.tensors else None
        return "" if chosen is None else str(chosen)


def arguments(cascade: Cascade, shape: Shape) -> Arguments:
    """Those of a cascade that chooses nothing."""
    return _of(cascade, example_inputs(cascade, torch.float32, 0, shape))


def rest(attention: Attention, shape: Shape) -> tuple[Cascade, Arguments]:
    """What reads the lists of an attention that chooses, and its arguments: the lists too."""
    assert attention.selection is not None, "it chooses"
    drawn = example_inputs(attention.cascade, torch.float32, 0, shape)
    tensors, numbers = binding.arguments(attention.cascade, (), drawn)
    reader = attention.selection.rest
    return reader.cascade, _of(reader.cascade, attention.selection.read_by_the_rest({**tensors, **numbers}))


def _of(cascade: Cascade, drawn: Mapping[str, torch.Tensor | Scalar]) -> Arguments:
    tensors, numbers = binding.arguments(cascade, (), dict(drawn))
    return Arguments(Given.of(cascade, tensors, numbers))
