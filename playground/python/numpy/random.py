"""Python's generator by numpy's names. The draws are others: what is decided from them is not to depend on which."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np


class Generator:
    def __init__(self, seed: int) -> None:
        self.drawn = random.Random(seed)

    def uniform(self, least: float, most: float, shape: Any) -> np.ndarray:
        wanted = (shape,) if isinstance(shape, int) else tuple(shape)
        return np.ndarray([self.drawn.uniform(least, most) for _ in range(math.prod(wanted))], wanted, np.FLOAT)

    def integers(self, least: int, most: int, shape: Any) -> np.ndarray:
        wanted = (shape,) if isinstance(shape, int) else tuple(shape)
        return np.ndarray([self.drawn.randrange(least, most) for _ in range(math.prod(wanted))], wanted, np.INT)


def default_rng(seed: int) -> Generator:
    return Generator(seed)
