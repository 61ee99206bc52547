"""Generated kernels run here in Triton's interpreter, on CPU tensors; it has to be chosen before Triton is imported."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
