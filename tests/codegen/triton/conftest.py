"""Generated kernels run here in Triton's interpreter, on CPU tensors; it has to be chosen before Triton is imported."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # for `import plans`
