"""What one call brings, by name: its tensors, its host numbers and its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Never

import torch

from einfuse.ir import Cascade, Scalar
from einfuse.runtime import binding

_NOTHING: Mapping[str, Never] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """Of a call its arguments; of a launch also what is made for it: outputs to write, lists, bounds. All tensors are on one device.

    ``at`` is the device of tensors that are only described: they are on the meta device themselves.
    """

    tensors: Mapping[str, torch.Tensor]
    numbers: Mapping[str, Scalar]
    sizes: Mapping[str, int]
    at: torch.device | None = None

    @staticmethod
    def of(cascade: Cascade, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Scalar]) -> Given:
        """With the sizes that the tensors tell. Raises ValueError where one of them does not fit."""
        sizes: Mapping[str, int] = binding.sizes(cascade, tensors)  # type: ignore[assignment]  # symbols only where a graph is traced
        return Given(tensors, numbers, sizes)

    @staticmethod
    def called(cascade: Cascade, args: Sequence[torch.Tensor], kwargs: Mapping[str, torch.Tensor | Scalar]) -> Given:
        """The arguments of a call, in the dtype of an autocast region. Raises as a call does for those that do not fit."""
        tensors, numbers = binding.arguments(cascade, args, kwargs)
        tensors = binding.autocast(tensors)
        binding.one_dtype(cascade, tensors)
        return Given.of(cascade, tensors, numbers)

    @property
    def device(self) -> torch.device:
        return self.at or next(iter(self.tensors.values())).device

    @property
    def inputs(self) -> dict[str, torch.Tensor | Scalar]:
        """Tensors and numbers, as the interpreter takes them."""
        return {**self.tensors, **self.numbers}

    @property
    def key(self) -> tuple[object, ...]:
        """Sizes and numbers: what is worked out from these alone is kept by them."""
        return (*sorted(self.sizes.items()), *sorted(self.numbers.items()))

    def more(self, tensors: Mapping[str, torch.Tensor] = _NOTHING, sizes: Mapping[str, int] = _NOTHING) -> Given:
        """With these besides, or in place of others of the same name."""
        return Given({**self.tensors, **tensors}, self.numbers, {**self.sizes, **sizes}, self.at)

    def read_by(self, *cascades: Cascade) -> Given:
        """The tensors and numbers that cascades take as inputs, and no others."""
        inputs = {t.name: t.param for c in cascades for t in c.inputs}
        tensors = {n: self.tensors[n] for n, param in inputs.items() if not param}
        return Given(tensors, {n: self.numbers[n] for n, param in inputs.items() if param}, self.sizes, self.at)

    def described(self) -> Given:
        """The shapes, strides and dtypes of the tensors, without their memory."""
        meta = {n: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") for n, x in self.tensors.items()}
        return Given(meta, self.numbers, self.sizes, self.device)

    @property
    def kind(self) -> tuple[object, ...]:
        """What calls share that one graph serves: numbers and device, names, shapes, strides and dtypes."""
        parts: list[object] = [self.device]
        for n, x in self.numbers.items():
            parts += (n, type(x), x if x else str(x))  # -0.0 is not 0.0 here
        for n, t in self.tensors.items():
            parts += (n, t.shape, t.stride(), t.dtype)
        return tuple(parts)
