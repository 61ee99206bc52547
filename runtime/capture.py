"""Whether a CUDA graph is being captured: its replays call nobody, and find other values in the tensors.

So a call that is captured decides nothing by values, and what its kernels read beside the user's tensors stays as long as the process does.
"""

from __future__ import annotations

import torch


def capturing() -> bool:
    """Whether launches on the current stream go into a graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
