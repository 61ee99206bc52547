"""Images of tokens [B, H, W, C] as groups of tokens, adjacent or strided, and back: layout, no arithmetic."""

from __future__ import annotations

import torch


def partition(x: torch.Tensor, side: int, interval: int = 1) -> torch.Tensor:
    """[B, H, W, C] -> [B, windows, side * side, C]; the tokens of a group stand ``interval`` apart.

    Groups come row by row. Raises ValueError where side * interval does not divide H and W.
    """
    batch, height, width, channels = x.shape
    step = side * interval
    if height % step or width % step:
        raise ValueError(f"{step} must divide the height and the width of the image, found {height} and {width}")
    cells = x.reshape(batch, height // step, side, interval, width // step, side, interval, channels)
    return cells.permute(0, 1, 3, 4, 6, 2, 5, 7).reshape(batch, -1, side * side, channels)


def assemble(x: torch.Tensor, height: int, width: int, side: int, interval: int = 1) -> torch.Tensor:
    """The inverse of `partition`."""
    step = side * interval
    cells = x.reshape(x.shape[0], height // step, interval, width // step, interval, side, side, x.shape[-1])
    return cells.permute(0, 1, 5, 2, 3, 6, 4, 7).reshape(x.shape[0], height, width, x.shape[-1])


def convolve(convolution: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A 2-D convolution over tokens [B, H, W, C]."""
    return convolution(x.movedim(-1, 1)).movedim(1, -1)  # type: ignore[no-any-return]


def offsets(side: int) -> torch.Tensor:
    """Every offset between two tokens of a window, [2 side - 1, 2 side - 1, 2]."""
    reach = torch.arange(1 - side, side, dtype=torch.get_default_dtype())
    return torch.stack(torch.meshgrid(reach, reach, indexing="ij"), -1)
