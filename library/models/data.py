"""The data: what scikit-learn, matplotlib and the standard library bring along. Nothing is downloaded."""

from __future__ import annotations

import csv
import sysconfig
from pathlib import Path

import numpy as np
import torch


def split(n: int, part: float = 0.8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices to train on, and the others."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[: int(part * n)], order[int(part * n) :]


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 handwritten digits (scikit-learn): images [n, 8, 8] in 0 .. 1, labels [n]."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # scikit-learn has no types

    found = load_digits()
    return torch.tensor(found.images / 16, dtype=torch.float32), torch.tensor(found.target)


def wine() -> tuple[torch.Tensor, torch.Tensor]:
    """178 wines (scikit-learn): 13 standardised measurements, and the cultivar."""
    from sklearn.datasets import load_wine

    found = load_wine()
    x = torch.tensor(found.data, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(found.target)


def source_code(limit: int = 1_000_000) -> torch.Tensor:
    """Bytes of the standard library's sources, in order of name."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    data = b"".join(f.read_bytes() for f in files)[:limit]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def stocks() -> torch.Tensor:
    """Logarithms of monthly prices of ten shares and indices since 1990 (matplotlib's sample), [months, series], gaps filled forward."""
    with _sample("Stocks.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(line for line in file if not line.startswith("#")))[1:]
    values = np.array([[float(c) if c else np.nan for c in r[1:]] for r in rows if any(r[1:])])
    for n in range(1, len(values)):
        values[n] = np.where(np.isnan(values[n]), values[n - 1], values[n])
    whole = ~np.isnan(values).any(1)
    return torch.tensor(np.log(values[whole]), dtype=torch.float32)


def electroencephalogram() -> torch.Tensor:
    """Four channels of 800 samples of an EEG (matplotlib's sample), standardised, [time, channel]."""
    values = torch.tensor(np.fromfile(_sample("eeg.dat"), dtype=float).reshape(-1, 4), dtype=torch.float32)
    return (values - values.mean(0)) / values.std(0)


def photograph() -> torch.Tensor:
    """A photograph in 0 .. 1, [H, W, 3] (scikit-learn's sample)."""
    from sklearn.datasets import load_sample_image

    return torch.tensor(np.array(load_sample_image("flower.jpg")), dtype=torch.float32) / 255


def _sample(name: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "sample_data" / name
